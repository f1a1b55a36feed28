# The commands people use. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help run demo test lint fmt doc bench bench-wrk bench-compare bench-instructions trained deploy ci

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## the proxy with its embedded slow upstream, on 127.0.0.1:8080
	cargo run --release

demo: ## a stampede of a thousand clients, and what it came to
	cargo run --release -- demo

test: ## everything but what needs nginx, wrk or promtool
	cargo test

lint: ## what the reviewers need not look for
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test --test tidy

fmt: ## format the code
	cargo fmt

doc: ## the documentation of the code, private items too
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --document-private-items --open

bench: ## micro-benchmarks: the policy, the hit path
	cargo bench

bench-wrk: ## CPU for each hit, measured under wrk beside nginx
	cargo build --release
	benches/wrk.sh target/release/forebay

bench-compare: ## forebay and its peers in one run (QUICK=1: under three minutes)
	# One by one: what examples need of tokio for tests would slow the program down.
	cargo build --release
	cargo build --release --example compare
	benches/compare/run $(if $(QUICK),--quick)

bench-instructions: ## instructions for each hit, against the committed baseline (needs valgrind)
	cargo build --release
	benches/instructions target/release/forebay

trained: ## the program built by what it does most, as target/trained/forebay (needs llvm-tools)
	benches/train

deploy: ## check what is in deploy/ (needs promtool)
	deploy/verify.sh

ci: ## all that must pass before a change goes in (installs what it needs)
	bash .ci/run
