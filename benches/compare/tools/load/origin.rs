//! An upstream in the thread of the load: what a pass costs a server shall not depend on how fast others on the second core are,
//! nor on whether they sleep, and have to be woken, each time that the server writes to them.

use crate::upstream::quick_answer;
use crate::{Failure, upstream};
use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Poll, Token};
use slab::Slab;
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;

/// Tokens from here on are connections to the origin; this one is its listener.
const FIRST_TOKEN: usize = 1 << 32;

/// Answers what is for `/KIND/0/BYTES/NAME` as the other upstream does, without delays.
pub(super) struct Origin {
    listener: TcpListener,
    connections: Slab<TcpStream>,
    /// By path.
    answers: HashMap<Vec<u8>, Vec<u8>>,
    pub(super) requests: u64,
}

impl Origin {
    pub(super) fn listen(poll: &Poll, address: SocketAddr) -> Result<Self, Failure> {
        let mut listener = TcpListener::from_std(upstream::listener(address)?);
        poll.registry().register(&mut listener, Token(FIRST_TOKEN), Interest::READABLE)?;
        Ok(Self { listener, connections: Slab::new(), answers: HashMap::new(), requests: 0 })
    }

    /// Sees to what has happened, if it is the origin's.
    pub(super) fn takes(&mut self, poll: &Poll, token: Token, buffer: &mut [u8]) -> Result<bool, Failure> {
        match token.0.checked_sub(FIRST_TOKEN) {
            None => return Ok(false),
            Some(0) => self.accept(poll)?,
            Some(number) => self.answer(number - 1, buffer)?,
        }
        Ok(true)
    }

    fn accept(&mut self, poll: &Poll) -> Result<(), Failure> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            stream.set_nodelay(true)?;
            let entry = self.connections.vacant_entry();
            let token = Token(FIRST_TOKEN + 1 + entry.key());
            poll.registry().register(&mut stream, token, Interest::READABLE)?;
            entry.insert(stream);
        }
    }

    fn answer(&mut self, number: usize, buffer: &mut [u8]) -> Result<(), Failure> {
        let Some(stream) = self.connections.get_mut(number) else { return Ok(()) };
        let bytes = match stream.read(buffer) {
            Ok(bytes @ 1..) => bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Ok(0) | Err(_) => {
                drop(self.connections.remove(number));
                return Ok(());
            }
        };
        // A server has one request on each connection, without a body, and sends it at once.
        let request = &buffer[..bytes];
        if !request.ends_with(b"\r\n\r\n") {
            return Err("the server under test sent a request in parts".into());
        }
        let path = request.split(|byte| *byte == b' ').nth(1).ok_or("no path")?;
        if !self.answers.contains_key(path) {
            let answer = quick_answer(std::str::from_utf8(path)?).ok_or("no such kind")?;
            self.answers.insert(path.to_vec(), answer);
        }
        self.requests += 1;
        let answer = &self.answers[path];
        if stream.write(answer)? != answer.len() {
            return Err("an answer does not fit the socket's buffer".into());
        }
        Ok(())
    }
}
