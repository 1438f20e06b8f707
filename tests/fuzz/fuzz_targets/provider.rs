//! Fuzz target: see `adit_tests::decoders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some(decoder) = adit_tests::decoders::decoder("provider") {
        (decoder.accepts)(data);
    }
});
