#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // Refusing the input is fine; what must not happen is a panic, a hang or an allocation without bound.
    let _ = quant_io::fuzz_bodies::sections(data);
});
