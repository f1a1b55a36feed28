//! Tells when files have changed, by looking at them again and again.
//!
//! A look is one system call for a file, and works where notifications do not: on network file systems, for files that
//! are replaced by renaming another over them (as editors and certificate clients do), and through symbolic links of which
//! one on the way is swapped (as Kubernetes does for a `ConfigMap` or a `Secret`). What counts is what the path leads to.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::sleep;

/// What the watch can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// Pause between two looks at the files; `None`: they are not watched.
    pub interval: Option<Duration>,
}

/// What is to be watched.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// How.
    pub settings: Settings,
    /// Which files, and what they looked like when they were read.
    pub looks: Looks,
}

/// What files looked like at some moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Looks(BTreeMap<PathBuf, Option<Look>>);

/// What one file looked like. Whatever is written to it, or put in its place, it looks different afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// The same; unlike the former nobody can set it back.
    changed: (i64, i64),
}

impl Looks {
    /// A look at these files now. It may block for as long as the file system takes.
    pub fn at(files: impl IntoIterator<Item = PathBuf>) -> Self {
        let look = |file: &PathBuf| {
            let metadata = std::fs::metadata(file).ok()?;
            Some(Look {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            })
        };
        Self(files.into_iter().map(|file| (look(&file), file)).map(|(look, file)| (file, look)).collect())
    }

    /// These looks in place of later ones at the same files, which stay for all others.
    #[must_use]
    pub fn before(self, later: Self) -> Self {
        let mut looks = later.0;
        looks.extend(self.0);
        Self(looks)
    }

    /// The looks at these files alone.
    #[must_use]
    pub fn of(mut self, files: &[PathBuf]) -> Self {
        self.0.retain(|file, _| files.contains(file));
        self
    }

    /// A look at the same files now, from a thread that may block.
    async fn again(&self) -> Self {
        let files: Vec<_> = self.0.keys().cloned().collect();
        // It fails only where the runtime is about to end.
        tokio::task::spawn_blocking(move || Self::at(files)).await.unwrap_or_else(|_| self.clone())
    }
}

/// Calls `changed` each time that the files look otherwise than they are said to, and have done so for a whole interval:
/// whoever writes them has then, in all likelihood, done so. Goes on until the sender is dropped, which also says, after
/// each call, what to watch from there on.
pub async fn watch<F>(mut watched: Receiver<Watched>, changed: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    loop {
        let Watched { settings, looks } = watched.borrow_and_update().clone();
        let Some(interval) = settings.interval else {
            match watched.changed().await {
                Ok(()) => continue,
                Err(_) => return,
            }
        };
        let mut last = looks.clone();
        loop {
            tokio::select! {
                told = watched.changed() => match told {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = sleep(interval) => {}
            }
            let now = looks.again().await;
            if now != looks && now == last {
                changed().await;
                break;
            }
            last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::watch::channel;

    const INTERVAL: Duration = Duration::from_secs(2);

    /// Checks that a file, looked at through this path, looks different after the change.
    #[track_caller]
    fn check(path: &Path, change: impl FnOnce()) {
        let before = Looks::at([path.to_owned()]);
        assert_eq!(before, Looks::at([path.to_owned()]), "it looks different without a change");
        change();
        assert_ne!(before, Looks::at([path.to_owned()]));
    }

    #[test]
    fn whatever_happens_to_a_file_it_looks_different() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let file = at("file");
        check(&file, || fs::write(&file, "one").unwrap());
        check(&file, || fs::write(&file, "longer").unwrap());
        check(&file, || {
            // As long as before, and as old.
            let modified = fs::metadata(&file).unwrap().modified().unwrap();
            fs::write(at("new"), "LONGER").unwrap();
            fs::File::options().append(true).open(at("new")).unwrap().set_modified(modified).unwrap();
            fs::rename(at("new"), &file).unwrap();
        });
        check(&file, || {
            let before = fs::metadata(&file).unwrap();
            // The clock of the file system ticks slowly.
            while fs::metadata(&file).unwrap().ctime_nsec() == before.ctime_nsec() {
                fs::write(&file, "LoNgEr").unwrap();
                let rewritten = fs::File::options().append(true).open(&file).unwrap();
                rewritten.set_modified(before.modified().unwrap()).unwrap();
            }
        });
        check(&file, || fs::remove_file(&file).unwrap());
    }

    #[test]
    fn a_link_is_swapped_in_the_way_to_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("file"), "the same").unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/file", at("file")).unwrap();
        check(&at("file"), || {
            symlink("..2", at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_told_when_it_has_come_to_rest() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "0").unwrap();
        let watched =
            |interval| Watched { settings: Settings { interval }, looks: Looks::at([file.clone()]) };
        let (sender, receiver) = channel(watched(Some(INTERVAL)));
        let told = AtomicUsize::new(0);
        let watching = watch(receiver, || {
            told.fetch_add(1, Ordering::Relaxed);
            sender.send_replace(watched(Some(INTERVAL)));
            std::future::ready(())
        });
        let story = async {
            let told = || told.load(Ordering::Relaxed);
            // Between the looks, so that it is clear what they see.
            sleep(INTERVAL / 2).await;
            sleep(3 * INTERVAL).await;
            assert_eq!(told(), 0, "nothing has changed");
            for content in ["1", "22", "333"] {
                fs::write(&file, content).unwrap();
                sleep(INTERVAL).await;
                assert_eq!(told(), 0, "it is still being written");
            }
            sleep(INTERVAL).await;
            assert_eq!(told(), 1);
            sleep(5 * INTERVAL).await;
            assert_eq!(told(), 1, "one change is told once");
            sender.send_replace(watched(None));
            fs::write(&file, "4444").unwrap();
            sleep(5 * INTERVAL).await;
            assert_eq!(told(), 1, "it is not watched");
            sender.send_replace(watched(Some(INTERVAL)));
            sleep(5 * INTERVAL).await;
            assert_eq!(told(), 1, "it was read when the watch began");
            fs::write(&file, "55555").unwrap();
            sleep(3 * INTERVAL).await;
            assert_eq!(told(), 2);
        };
        tokio::select! {
            () = watching => panic!("the sender is still there"),
            () = story => {}
        }
    }
}
