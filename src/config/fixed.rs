//! What a configuration that is loaded again cannot change.

use super::Config;

impl Config {
    /// Takes over what cannot change while the program runs. Returns the keys whose values are other ones here: they wait
    /// for a restart.
    pub fn keep_fixed(&mut self, running: &Self) -> Vec<&'static str> {
        let mut differing = Vec::new();
        let Self { server, admin, telemetry, store, .. } = self;
        let mut keep = Keep(&mut differing);
        keep.value("server.listen", &mut server.listen, &running.server.listen);
        keep.value("server.threads", &mut server.threads, &running.server.threads);
        keep.value("admin.listen", &mut admin.listen, &running.admin.listen);
        keep.value("log.format", &mut telemetry.format, &running.telemetry.format);
        keep.value("store.bytes_max", &mut store.bytes_max, &running.store.bytes_max);
        keep.value("store.variants_max", &mut store.variants_max, &running.store.variants_max);
        keep.value("store.notes_max", &mut store.notes_max, &running.store.notes_max);
        keep.value("store.stamps_max", &mut store.stamps_max, &running.store.stamps_max);
        differing
    }
}

struct Keep<'a>(&'a mut Vec<&'static str>);

impl Keep<'_> {
    fn value<T: Clone + PartialEq>(&mut self, key: &'static str, new: &mut T, running: &T) {
        if new != running {
            new.clone_from(running);
            self.0.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Overrides, keys, load};

    #[test]
    fn what_is_fixed_is_kept_and_told_by_name() {
        let variables = [
            ("SERVER__LISTEN", "127.0.0.1:1"),
            ("SERVER__THREADS", "7"),
            ("SERVER__IDLE_TIMEOUT", "7s"),
            ("ADMIN__LISTEN", "127.0.0.1:2"),
            ("LOG__FORMAT", "json"),
            ("LOG__FILTER", "warn"),
            ("STORE__BYTES_MAX", "7MiB"),
            ("STORE__VARIANTS_MAX", "7"),
            ("STORE__NOTES_MAX", "7"),
            ("STORE__STAMPS_MAX", "7"),
        ];
        let environment = variables.map(|(name, value)| (format!("FOREBAY__{name}"), value.to_owned()));
        let running = load(None, std::iter::empty(), &Overrides::default()).unwrap();
        let new = load(None, environment.into_iter(), &Overrides::default()).unwrap();
        let mut kept = new.clone();
        let differing = kept.keep_fixed(&running);
        assert_eq!(differing.len(), 8, "{differing:?}");
        let known = keys();
        assert!(differing.iter().all(|key| known.contains(*key)), "{differing:?}");
        assert_eq!((&kept.store, &kept.server.listen), (&running.store, &running.server.listen));
        assert_eq!(kept.server.idle_timeout, new.server.idle_timeout);
        assert_eq!(kept.telemetry.filter, "warn");
        assert!(kept.clone().keep_fixed(&kept).is_empty());
    }
}
