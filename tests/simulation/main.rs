//! Deterministic simulation: a seed draws up a world (resources, clients, purges, reloads, failures, limits), all of which then
//! lives in one thread, in memory and in virtual time; a model checks every answer that a client gets against what that
//! client may legally see, and the counters against what the origin saw.
//!
//! `SEEDS=5000` runs more worlds, `FROM=3000` others. `SEED=17` runs one and prints what happened in it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]
#![allow(missing_docs, unreachable_pub, reason = "nothing leaves a test")]

mod client;
mod model;
mod origin;
mod plan;
mod turns;

use forebay::clock::Clock;
use forebay::proxy::{Proxy, Site};
use forebay::server::Server;
use forebay::telemetry::Telemetry;
use forebay::{server, store, upstream};
use model::World;
use parking_lot::Mutex;
use plan::Plan;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Worlds that are simulated where the environment does not say how many: about half a minute's worth.
const SEEDS: u64 = if cfg!(debug_assertions) { 300 } else { 3000 };

/// Worlds that are simulated twice.
const REPLAYS: u64 = 40;

/// For so long, by its own clock, a busy machine does something else now and then: long enough for whatever goes by that clock.
const HICCUP: Duration = Duration::from_millis(350);

/// When that happens, by the world's clock, in milliseconds: in a turn that is nobody's.
const HICCUPS: [u64; 4] = [1004, 3004, 6004, 10_004];

/// Failing seeds, and violations of each, that are told.
const SHOWN: usize = 8;

/// Wall time at the beginning of each world.
const EPOCH: u64 = 1_900_000_000;

/// Longer than anything in a world lasts that nobody waits for.
const AFTERMATH: Duration = Duration::from_secs(300);

#[test]
fn nobody_ever_gets_what_is_not_for_them() {
    let given = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    if let Some(seed) = given("SEED") {
        let world = run(seed, Duration::ZERO);
        for line in &world.trace() {
            println!("{line}");
        }
        let violations = world.violations();
        assert!(violations.is_empty(), "{}", story(seed, &violations));
        return;
    }
    let count = given("SEEDS").unwrap_or(SEEDS);
    let first = given("FROM").unwrap_or(0);
    let next = AtomicU64::new(first);
    let answers = AtomicU64::new(0);
    let told = Mutex::new(BTreeMap::<&str, u64>::new());
    let failed = Mutex::new(BTreeMap::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let violations =
                        match std::panic::catch_unwind(AssertUnwindSafe(|| run(seed, Duration::ZERO))) {
                            Ok(world) => {
                                answers.fetch_add(world.answers(), Ordering::Relaxed);
                                for (what, routes) in world.told_to_the_one() {
                                    *told.lock().entry(what).or_default() += routes;
                                }
                                world.violations()
                            }
                            Err(_) => vec!["a panic".to_owned()],
                        };
                    if !violations.is_empty() {
                        failed.lock().insert(seed, violations);
                    }
                }
            });
        }
    });
    let (answers, told) = (answers.into_inner(), told.into_inner());
    println!(
        "{count} worlds, {answers} answers; duplicates on how many routes told to the one, or why not: {told:?}"
    );
    let failed = failed.into_inner();
    let shown = failed.iter().take(SHOWN).map(|(seed, violations)| story(*seed, violations));
    let shown: Vec<String> = shown.collect();
    assert!(failed.is_empty(), "{} seeds failed\n{}", failed.len(), shown.join("\n"));
}

#[test]
fn a_seed_replays_what_it_did_however_busy_the_machine_is() {
    let replays = |seed| {
        let (first, second) = (run(seed, Duration::ZERO).trace(), run(seed, HICCUP).trace());
        let differs = first.iter().zip(&second).position(|(one, other)| one != other);
        let at = differs.unwrap_or_else(|| first.len().min(second.len()));
        assert_eq!(first.get(at), second.get(at), "seed {seed} is not deterministic, line {at}");
    };
    // They sleep most of the time.
    std::thread::scope(|scope| {
        for seed in 0..REPLAYS {
            scope.spawn(move || replays(seed));
        }
    });
}

fn story(seed: u64, violations: &[String]) -> String {
    let shown = violations.iter().take(SHOWN).map(|violation| format!("\n  {violation}"));
    let shown: String = shown.collect();
    format!(
        "seed {seed}: {} violations{shown}\n  replay: SEED={seed} cargo test --test simulation nobody -- --nocapture",
        violations.len()
    )
}

/// Runs one world from its beginning until all is quiet, on a machine that now and then does something else for so long.
fn run(seed: u64, hiccup: Duration) -> Arc<World> {
    // The proxy's own dice (jitter, early refresh) fall as the seed says, too.
    fastrand::seed(seed);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (world, telemetry) = runtime.block_on(async {
        let plan = Arc::new(Plan::draw(seed));
        let world = World::new(Arc::clone(&plan));
        let telemetry = Telemetry::new(false);
        let upstreams = vec![plan.upstream.clone()];
        let site = Site::over(plan.proxy.clone(), upstreams, &telemetry, &origin::transport(&world)).unwrap();
        let stored = store::Settings { bytes_max: plan.store_bytes_max, ..store::Settings::default() };
        let proxy = Proxy::new(site, &stored, Arc::clone(&telemetry), Clock::simulated(EPOCH));
        let (settings, workers) = (server::Settings::default(), server::Workers::none());
        let server = Server::start(Vec::new(), workers, None, &settings, &proxy, &telemetry);
        let server = Arc::new(server);
        let mut tasks = tokio::task::JoinSet::new();
        for (number, itinerary) in plan.clients.iter().enumerate() {
            tasks.spawn(client::live(Arc::clone(&world), Arc::clone(&server), number, itinerary.clone()));
        }
        for purge in plan.purges.clone() {
            let (world, proxy) = (Arc::clone(&world), Arc::clone(&proxy));
            tasks.spawn(async move {
                tokio::time::sleep(purge.after).await;
                proxy.purge(&purge.purge).unwrap();
                world.purged(&purge);
                if purge.sweeps {
                    proxy.sweep().await;
                }
            });
        }
        for reload in plan.reloads.clone() {
            let (plan, proxy) = (Arc::clone(&plan), Arc::clone(&proxy));
            let telemetry = Arc::clone(&telemetry);
            tasks.spawn(async move {
                tokio::time::sleep(reload.after).await;
                let (settings, upstreams) = plan.reloaded(reload);
                proxy.replace_site(&proxy.site().successor(settings, upstreams, &telemetry).unwrap());
            });
        }
        for at in HICCUPS {
            tasks.spawn(async move {
                tokio::time::sleep(Duration::from_millis(at)).await;
                is_elsewhere(hiccup);
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        tokio::time::sleep(AFTERMATH).await;
        world.check_counters(&telemetry);
        (world, Arc::downgrade(&telemetry))
    });
    drop(runtime);
    assert_eq!(telemetry.strong_count(), 0, "something of the proxy holds itself");
    world
}

#[expect(clippy::disallowed_methods, reason = "it is the machine that does something else, and all in it")]
fn is_elsewhere(hiccup: Duration) {
    std::thread::sleep(hiccup);
}

/// The address of every upstream in memory.
fn nowhere() -> upstream::Origin {
    upstream::Origin { https: false, host: "origin.example".into(), port: 80 }
}
