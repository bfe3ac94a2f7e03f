# Each target is one script. The first build compiles RocksDB, which takes 10 to 15 minutes on two cores.
.DEFAULT_GOAL := help
.PHONY: help run build test soak soak-faults verify fix bench bench-moves bench-quick bench-micro profile setup install

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

run: ## set up, build, and start a local cluster of three nodes; Ctrl-C stops it, the data stay in .data
	@scripts/run

build: ## set up and build kvnode and kvctl
	@scripts/build

test: ## set up, build, and run all tests
	@scripts/test

soak: ## a mixed load for an hour, whose end must be as good as its beginning; then 200 shards whose nodes come and go
	@scripts/soak-load

soak-faults: ## the tests that run in rounds, for an hour, with other seeds each time
	@scripts/soak-faults

verify: ## what CI checks beside the tests: format, lints, compatibility, docs; writes nothing
	@scripts/verify

fix: ## format, apply lints, write down generated files
	@scripts/fix

bench: ## measure KvCluster and etcd in one run on this machine, 40 minutes; needs Go
	@scripts/bench

bench-moves: ## what clients see while nodes are killed, restarted and rebuilt, ten minutes
	@scripts/bench-moves

bench-quick: ## whether that works, in a minute once etcd is built
	@scripts/bench-quick

bench-micro: ## what encoding, apply, the log and routing cost by themselves
	@scripts/bench-micro

profile: ## where the time of an operation goes, with flame graphs; needs perf and root
	@scripts/profile

setup: ## install what the build needs; asks before it uses sudo
	@scripts/setup

install: ## link kvctl and kvnode into ~/.cargo/bin
	@scripts/install
