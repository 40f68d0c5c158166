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
    quantization(cases);
}

fn quantization(cases: &mut Cases) {
    let with = |text: &str| format!("{{\"quantization_config\":{text}}}");
    let group = |text: &str| {
        let head = "\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\"";
        with(&format!("{{{head},\"config_groups\":{{\"g\":{{\"targets\":[\"Linear\"],\"weights\":{text}}}}}}}"))
    };
    cases.add("ct-good", "ok", group("{\"num_bits\":4,\"group_size\":32,\"strategy\":\"group\"}"));
    cases.add("ct-defaults", "ok", group("{}"));
    cases.add(
        "ct-unknown-keys",
        "ok",
        group("{\"num_bits\":4,\"observer_kwargs\":{\"x\":1e-2},\"dynamic\":\"local\"}"),
    );
    for (name, text) in [
        ("bits-0", "{\"num_bits\":0}"),
        ("bits-9", "{\"num_bits\":9}"),
        ("bits-negative", "{\"num_bits\":-4}"),
        ("bits-fraction", "{\"num_bits\":4.5}"),
        ("bits-text", "{\"num_bits\":\"4\"}"),
        ("group-0", "{\"group_size\":0}"),
        ("group-negative", "{\"group_size\":-2}"),
        ("group-huge", "{\"group_size\":4294967296}"),
        ("group-missing", "{\"strategy\":\"group\"}"),
        ("type-complex", "{\"type\":\"complex\"}"),
        ("symmetric-text", "{\"symmetric\":\"yes\"}"),
        ("block-without-sides", "{\"strategy\":\"block\"}"),
        ("block-of-zero", "{\"strategy\":\"block\",\"block_structure\":[0,128]}"),
        ("block-of-three", "{\"strategy\":\"block\",\"block_structure\":[1,2,3]}"),
    ] {
        cases.add(&format!("ct-{name}"), "BadField", group(text));
    }
    cases.add("ct-strategy-of-activations", "Unsupported", group("{\"strategy\":\"token\"}"));
    let whole = |text: &str| with(&format!("{{\"quant_method\":\"compressed-tensors\",{text}}}"));
    cases.add("ct-format-unknown", "Unsupported", whole("\"format\":\"pack-42\",\"config_groups\":{}"));
    cases.add("ct-format-sparse", "Unsupported", whole("\"format\":\"marlin-24\",\"config_groups\":{}"));
    cases.add("ct-groups-are-a-list", "BadField", whole("\"config_groups\":[]"));
    cases.add("ct-ignore-is-text", "BadField", whole("\"config_groups\":{},\"ignore\":\"lm_head\""));
    cases.add("ct-ignore-holds-numbers", "BadField", whole("\"config_groups\":{},\"ignore\":[1]"));
    cases.add("ct-targets-are-text", "BadField", whole("\"config_groups\":{\"g\":{\"targets\":\"Linear\"}}"));
    let pattern = whole("\"config_groups\":{\"g\":{\"targets\":[\"re:(unclosed\"],\"weights\":{}}}");
    cases.add("ct-pattern-not-closed", "BadPattern", pattern);
    let bomb = "(a{1000}){1000}";
    let bomb = format!("\"config_groups\":{{\"g\":{{\"targets\":[\"re:{bomb}\"],\"weights\":{{}}}}}}");
    cases.add("ct-pattern-too-large", "BadPattern", whole(&bomb));
    for method in ["gptq", "awq", "bitsandbytes", "fp8", "made-up"] {
        cases.add(&format!("method-{method}"), "Unsupported", with(&format!("{{\"quant_method\":\"{method}\"}}")));
    }
}
