//! Peers that write raw bytes and remember what they get.

use crate::support::*;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// An origin that writes down every byte it gets, and answers each head with the same short page.
#[derive(Clone)]
pub struct Witness {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Witness {
    pub async fn start() -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let address = raw_origin(move |_, mut stream| {
            let seen = Arc::clone(&noted);
            async move {
                let (mut buffer, mut answered) = ([0; 4096], 0);
                let mut own = Vec::new();
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    own.extend_from_slice(&buffer[..count]);
                    seen.lock().extend_from_slice(&buffer[..count]);
                    let empty_lines = own.windows(4).filter(|window| window == b"\r\n\r\n").count();
                    let last_chunks = own.windows(7).filter(|window| window == b"\r\n0\r\n\r\n").count();
                    let heads = empty_lines - last_chunks;
                    while answered < heads {
                        answered += 1;
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                }
            }
        })
        .await;
        Self { address, seen }
    }

    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock()).into_owned()
    }
}

/// What a raw client got until the connection was closed, and how long that took.
pub struct Told {
    pub text: String,
    pub after: Duration,
}

impl Told {
    /// The statuses of all answers.
    pub fn statuses(&self) -> Vec<u16> {
        self.text
            .match_indices("HTTP/1.1 ")
            .map(|(at, _)| self.text[at + 9..at + 12].parse().unwrap())
            .collect()
    }
}

/// Sends these bytes and reads until the proxy closes the connection.
pub async fn tell(address: SocketAddr, bytes: &[u8]) -> Told {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // A refusal may come before everything is written.
    let _ = stream.write_all(bytes).await;
    hear(&mut stream).await
}

/// Reads until the proxy closes the connection.
pub async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Told {
    let started = Instant::now();
    let mut text = Vec::new();
    // A reset is a close, too.
    let _ = stream.read_to_end(&mut text).await;
    Told { text: String::from_utf8_lossy(&text).into_owned(), after: started.elapsed() }
}

/// Reads one head and as many bytes of body as it says.
pub async fn hear_one(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let head = read_head(stream).await;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.trim().parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    head + &String::from_utf8_lossy(&body)
}
