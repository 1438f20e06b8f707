//! One program for all targets: each differs in the function only that it calls, and linking the
//! four programs' code once instead of once for each target saves most of the build. The target
//! is named by `ADIT_FUZZ_TARGET`, which `cargo xtask fuzz` sets.
#![no_main]

use std::{env, sync::LazyLock};

static ACCEPTS: LazyLock<fn(&[u8]) -> bool> = LazyLock::new(|| {
    let name = env::var("ADIT_FUZZ_TARGET").unwrap_or_default();
    match adit_tests::decoders::decoder(&name) {
        Some(decoder) => decoder.accepts,
        None => panic!("ADIT_FUZZ_TARGET names no decoder: \"{name}\""),
    }
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ACCEPTS(data);
});
