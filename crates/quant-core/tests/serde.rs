//! Formats in serialized configurations.
#![cfg(feature = "serde")]

use quant_core::Format;

#[test]
fn formats_serialize_as_their_names() {
    for named in Format::named() {
        let text = serde_json::to_string(&named.format).unwrap();
        assert_eq!(text, format!("{:?}", named.name));
        assert_eq!(serde_json::from_str::<Format>(&text).unwrap(), named.format);
    }
    let error = serde_json::from_str::<Format>("\"int4-g0\"").unwrap_err().to_string();
    assert!(error.contains("int4-g0"), "{error}");
    assert!(serde_json::from_str::<Format>("4").is_err());
}
