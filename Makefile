# The commands of this project. `make` alone lists them; scripts/ holds what they do.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ENV := . scripts/env

##@ Use
.PHONY: quickstart
quickstart: ## From a clone to a tuned model that answers: set-up, build, train, compare on held-out rows
	@scripts/quickstart

.PHONY: setup
setup: ## What a build needs: PostgreSQL, Rust, libtorch, the base model (ATTUNE_CUDA=1 for a CUDA machine)
	@scripts/setup

.PHONY: build
build: setup ## Build every program, both halves
	@$(ENV)
	cargo build --locked --workspace --bins

.PHONY: release
release: setup ## Optimised binaries with libtorch in ./dist, and a tarball of them (TO=FOLDER)
	@scripts/release $(TO)

.PHONY: dev
dev: build ## Start a platform on this machine, data in ./.attune, until Ctrl-C (UP="--listen 127.0.0.1:8080")
	@$(ENV)
	exec "$$CARGO_TARGET_DIR/debug/attune" up $(UP)

##@ Check
.PHONY: test
test: ## Everything CI runs: format, lints, build, all tests
	@scripts/test

.PHONY: check
check: setup ## Format, lints, documentation, statements against migrations; cargo-deny and typos where installed
	@scripts/check

.PHONY: resume-test
resume-test: setup ## Kill trainers at random moments and compare their results (KILL_POINTS=52 KILL_SEED=…)
	@scripts/resume-test

.PHONY: conformance
conformance: ## Both official clients, generated requests, forbidden addresses, forged tokens (ATTUNE_FUZZ_SECONDS=420)
	@scripts/conformance

.PHONY: export-test
export-test: ## Exports loaded in PEFT, transformers and llama.cpp, in an environment of their own (builds llama-cpp-python)
	@scripts/export-test

.PHONY: abuse
abuse: ## Hostile content, strange files, cut connections, outages, and `make test` on an empty HOME (SHORT=1: without that)
	@scripts/abuse

.PHONY: simulate
simulate: ## Replay 15,000 jobs of 30 tenants in 5 pools through the scheduler's planner: fairness, utilisation, cost of a step
	@scripts/simulate

.PHONY: pool-test
pool-test: setup ## Simulate the autoscaler under recorded loads; routing, deployments and two real replicas (ARGS=SHORT: the first)
	@scripts/pool-test $(ARGS)

.PHONY: slurm-test
slurm-test: ## Platforms on a real Slurm cluster of one node with two fake GPUs (needs root; installs slurm-wlm and munge)
	@scripts/slurm-test $(FILTER)

.PHONY: kubernetes-test
kubernetes-test: ## The Kubernetes provider on a scripted API server, its objects and the Helm chart against their schemas
	@scripts/kubernetes-test $(FILTER)

.PHONY: faults
faults: setup ## Kill, stop and cut off processes at random moments, and check the invariants (FULL=1: 300 kills, 45 minutes)
	@scripts/faults

.PHONY: infra-check
infra-check: ## Images, compose file, chart, units, Terraform example, alert rules and dashboard of infra/ (PARTS="helm monitoring")
	@scripts/infra-check $(PARTS)

.PHONY: house
house: setup ## Form of the source code: circles of imports, sizes, words, files to touch (BASE=COMMIT: of the OpenAPI document)
	@scripts/house

.PHONY: left
left: ## Build and test all that needs no libtorch, without libtorch
	@$(ENV)
	unset LIBTORCH LD_LIBRARY_PATH
	scripts/test-postgres cargo test --locked -p attune-domain -p attune-dataset -p attune-bucket -p attune-store -p attune-text -p attune-dataprep -p attune-gguf -p attune-node -p attune-process -p attune-inbound -p attune-outbound -p attune-inference -p attune-api -p attune-scheduler -p attune-cli

##@ Measure (on a quiet machine)
.PHONY: memory-report
memory-report: setup ## Predicted and measured peak memory of 64 training jobs, some 20 minutes: docs/bench/memory.csv, docs/memory.svg
	@scripts/memory-report

.PHONY: pace-report
pace-report: setup ## Predicted and measured durations of 20 training jobs over four bases, some 10 minutes: docs/bench/pace.csv
	@scripts/pace-report

.PHONY: bench-train
bench-train: ## Training compared with transformers + PEFT + bitsandbytes: speed, memory, start (ARGS="--rounds 3"; 6 GB of Python)
	@scripts/bench-train $(ARGS)

.PHONY: bench-against
bench-against: ## Training with an earlier commit and with this tree in turn: nothing may become slower (ARGS="COMMIT --rounds 3")
	@scripts/bench-against $(ARGS)

.PHONY: bench-api
bench-api: ## Requests a second, their latency, and memory while 2 GiB go up and come down (release build; loopback only)
	@scripts/bench-api $(ARGS)

.PHONY: bench-queue
bench-queue: ## Claims a second and the pick-up of jobs in a queue of 10,000, alone and next to 1,000,000 finished jobs
	@scripts/bench-queue

.PHONY: bench-serve
bench-serve: ## Serving compared with llama.cpp and PEFT; adapters, latency, memory, cold start (ARGS="rates memory"; SOAK=1)
	@scripts/bench-serve $(ARGS)

.PHONY: train-cost
train-cost: ## How a training step's cost grows with length, batch and rank: docs/bench/train.csv, docs/train-cost.svg
	@scripts/train-cost $(ARGS)

##@ Refresh what is committed
.PHONY: openapi
openapi: ## Rewrite openapi/openapi.json and openapi/job.schema.json from the routes
	@$(ENV)
	UPDATE=1 cargo test -q --locked --workspace --lib openapi::tests::the_committed_document

.PHONY: sqlx
sqlx: ## Rewrite .sqlx from migrations/ and the statements in store/ (CHECK=--check: compare only)
	@scripts/sqlx $(CHECK)

.PHONY: golden
golden: ## Rewrite the reference values in */testdata from PyTorch, transformers, PEFT and bitsandbytes (6 GB of Python)
	@scripts/golden

.PHONY: dataset
dataset: ## Rewrite the quickstart's rows from their script and seed
	@python3 examples/quickstart/make_dataset.py

.PHONY: help
help:
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
