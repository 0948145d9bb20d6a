#!/usr/bin/env bash
# Everything a change needs: formatting, clippy and documentation without a warning, every test. CI runs the same.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --check
cargo fmt --check --manifest-path emulator/Cargo.toml
cargo clippy --release --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps
cargo test --release
# The emulated driver finds what it promises to find.
CARGO_TARGET_DIR=target/emulator cargo test --release --manifest-path emulator/Cargo.toml
