//! The corpus: every file with the outcome it must have, made by code so that it can be reviewed.

mod by_hand;
mod compressed;
mod compressed_by_hand;
mod gguf;
mod json;
mod packed;
mod parts;
mod safetensors;

#[cfg(test)]
pub(crate) use safetensors::file;

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Its name; the extension decides which reader it goes through.
    pub(crate) name: String,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
    /// Name of the error variant, or `ok` for a legal file.
    pub(crate) expected: &'static str,
}

/// Collects the cases of one container.
pub(crate) struct Cases {
    extension: &'static str,
    prefix: &'static str,
    list: Vec<Case>,
}

impl Cases {
    fn add(&mut self, name: &str, expected: &'static str, bytes: impl Into<Vec<u8>>) {
        let name = format!("{}-{name}.{}", self.prefix, self.extension);
        self.list.push(Case { name, bytes: bytes.into(), expected });
    }
}

/// The whole corpus, in order of name.
pub(crate) fn all() -> Vec<Case> {
    type Maker = fn(&mut Cases);
    let makers: [(&'static str, &'static str, Maker); 8] = [
        ("container", "safetensors", safetensors::make),
        ("gguf", "gguf", gguf::make),
        ("packed", "safetensors", packed::make),
        ("packed", "safetensors", by_hand::make),
        ("index", "json", json::indexes),
        ("config", "json", json::configs),
        ("compressed", "pair", compressed::make),
        ("compressed", "pair", compressed_by_hand::make),
    ];
    let mut all = Vec::new();
    for (prefix, extension, make) in makers {
        let mut cases = Cases { extension, prefix, list: Vec::new() };
        make(&mut cases);
        all.extend(cases.list);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The table of expected outcomes, as it is committed.
pub(crate) fn expected_json(cases: &[Case]) -> String {
    let lines: Vec<String> = cases.iter().map(|c| format!("  \"{}\": \"{}\"", c.name, c.expected)).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}
