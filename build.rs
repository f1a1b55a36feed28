//! Tells the program which git revision it is built from.

use std::env;
use std::path::Path;
use std::process::Command;

/// Set by builds that have no repository at hand, for instance of a container image.
const GIVEN: &str = "FOREBAY_GIT_REVISION";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={GIVEN}");
    let given = env::var(GIVEN).ok().filter(|revision| !revision.is_empty());
    let revision = given.or_else(|| {
        watch_head();
        git(&["rev-parse", "--short", "HEAD"])
    });
    let version = env!("CARGO_PKG_VERSION");
    let known = revision.as_ref().map(|revision| format!(" ({revision})"));
    println!("cargo::rustc-env=FOREBAY_VERSION={version}{}", known.unwrap_or_default());
    println!("cargo::rustc-env=FOREBAY_REVISION={}", revision.as_deref().unwrap_or("unknown"));
}

/// Builds again when HEAD moves, and only then: HEAD names a branch, the branch's file (or the packed list) names
/// the commit, and the log of HEAD tells each move.
fn watch_head() {
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    let names = ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref());
    for path in names.filter_map(|name| git(&["rev-parse", "--git-path", name])) {
        // Cargo takes a file that is missing for one that has changed.
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}
