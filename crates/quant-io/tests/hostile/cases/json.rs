//! Indexes of shards and config.json.

use super::Cases;

pub(crate) fn indexes(cases: &mut Cases) {
    let map = |entries: &str| format!("{{\"weight_map\":{{{entries}}}}}");
    let total = |value: &str| format!("{{\"metadata\":{{\"total_size\":{value}}},\"weight_map\":{{}}}}");
    cases.add("good", "ok", "{\"metadata\":{\"total_size\":4},\"weight_map\":{\"a\":\"model-1.safetensors\"}}");
    cases.add("no-tensors", "ok", map(""));
    cases.add("unknown-fields", "ok", "{\"metadata\":{\"x\":[1]},\"weight_map\":{},\"y\":{}}");
    cases.add("empty", "BadJson", "");
    cases.add("not-closed", "BadJson", "{\"weight_map\":{");
    cases.add("two-objects", "BadJson", "{\"weight_map\":{}}{}");
    cases.add("array", "BadField", "[{},{}]");
    cases.add("no-map", "BadField", "{\"metadata\":{}}");
    cases.add("map-is-array", "BadField", "{\"weight_map\":[\"a\"]}");
    cases.add("map-is-null", "BadField", "{\"weight_map\":null}");
    cases.add("map-twice", "BadField", "{\"weight_map\":{},\"weight_map\":{}}");
    cases.add("shard-is-number", "BadField", map("\"a\":1"));
    cases.add("shard-is-list", "BadField", map("\"a\":[\"m.safetensors\"]"));
    cases.add("tensor-twice", "DuplicateKey", map("\"a\":\"m.safetensors\",\"a\":\"n.safetensors\""));
    for (name, path) in [
        ("parent", "../m.safetensors"),
        ("parent-inside", "x/../../m.safetensors"),
        ("absolute", "/etc/passwd"),
        ("folder", "sub/m.safetensors"),
        ("backslash", "..\\\\m.safetensors"),
        ("drive", "c:m.safetensors"),
        ("dot", "."),
        ("dot-dot", ".."),
        ("nothing", ""),
        ("nul", "m\\u0000.safetensors"),
        ("slash-at-end", "m.safetensors/"),
    ] {
        cases.add(&format!("path-{name}"), "UnsafePath", map(&format!("\"a\":\"{path}\"")));
    }
    cases.add("total-negative", "BadField", total("-1"));
    cases.add("total-fraction", "BadField", total("1.5"));
    cases.add("total-text", "BadField", total("\"4\""));
    cases.add("total-huge", "BadField", total("1e30"));
    cases.add("total-whole-float", "ok", total("4.0"));
    cases.add("deep-map", "BadField", format!("{{\"weight_map\":{}", "[".repeat(3500)));
    cases.add("deep-unknown", "BadJson", format!("{{\"x\":{}", "[".repeat(3500)));
}

pub(crate) fn configs(cases: &mut Cases) {
    cases.add("empty-object", "ok", "{}");
    cases.add("model", "ok", "{\"architectures\":[\"LlamaForCausalLM\"],\"rope_theta\":1e4}");
    cases.add("empty", "BadJson", "");
    cases.add("not-closed", "BadJson", "{\"a\":");
    cases.add("array", "BadField", "[]");
    cases.add("null", "BadField", "null");
    cases.add("text", "BadField", "\"config\"");
    cases.add("deep", "BadJson", "{\"a\":".repeat(800));
    cases.add("deep-arrays", "BadJson", format!("{{\"a\":{}", "[".repeat(3500)));
    cases.add("number-out-of-range", "BadJson", "{\"a\":1e999}");
    cases.add("lone-surrogate", "BadJson", "{\"a\":\"\\udc00\"}");
}
