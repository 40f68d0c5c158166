//! From text to tokens and back.

use crate::{Config, Error};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// How a model reads text.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Text {
    /// Every byte is a token of the same number.
    Bytes,
    /// A Hugging Face `tokenizer.json`.
    HuggingFace {
        /// The file, for errors.
        path: PathBuf,
        /// What it holds.
        tokenizer: Box<Tokenizer>,
    },
}

/// A text as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// The token ids.
    pub ids: Vec<u32>,
    /// For each token, the byte of the text at which it ends; never falling.
    ///
    /// Where a tokenizer cuts inside a character, the first part is given all of its bytes.
    pub ends: Vec<usize>,
}

impl Tokens {
    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

impl Text {
    /// Reads `tokenizer.json` of a model folder; a folder without one whose vocabulary has 256 entries is byte-level.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] when the file cannot be read, or is needed and missing.
    pub fn open(folder: &Path, config: &Config) -> Result<Self, Error> {
        let path = folder.join("tokenizer.json");
        if !path.exists() && config.vocab_size == 256 {
            return Ok(Self::Bytes);
        }
        match Tokenizer::from_file(&path) {
            Ok(tokenizer) => Ok(Self::HuggingFace { path, tokenizer: Box::new(tokenizer) }),
            Err(source) => Err(Error::Tokenizer { path, reason: source.to_string() }),
        }
    }

    /// Cuts a text into tokens, adding none of its own.
    ///
    /// # Errors
    ///
    /// [`Error::NotUtf8`] and [`Error::Tokenizer`]; a byte-level model reads anything.
    ///
    /// # Examples
    ///
    /// ```
    /// let tokens = quant_models::Text::Bytes.encode(b"Hi")?;
    /// assert_eq!((tokens.ids, tokens.ends), (vec![72, 105], vec![1, 2]));
    /// # Ok::<(), quant_models::Error>(())
    /// ```
    pub fn encode(&self, text: &[u8]) -> Result<Tokens, Error> {
        match self {
            Self::Bytes => {
                Ok(Tokens { ids: text.iter().map(|b| u32::from(*b)).collect(), ends: (1..=text.len()).collect() })
            }
            Self::HuggingFace { path, tokenizer } => {
                let text = str::from_utf8(text).map_err(|e| Error::NotUtf8 { offset: e.valid_up_to() })?;
                let encoding = tokenizer
                    .encode(text, false)
                    .map_err(|source| Error::Tokenizer { path: path.clone(), reason: source.to_string() })?;
                let mut reached = 0;
                let ends = encoding.get_offsets().iter().map(|(_, end)| {
                    reached = reached.max(*end);
                    reached
                });
                Ok(Tokens { ends: ends.collect(), ids: encoding.get_ids().to_vec() })
            }
        }
    }

    /// Writes tokens as text, leaving special tokens out; bytes that are not UTF-8 become `U+FFFD`.
    ///
    /// # Errors
    ///
    /// [`Error::TokenRange`] for ids above 255 of a byte-level model, [`Error::Tokenizer`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        match self {
            Self::Bytes => {
                let byte = |(index, &id): (usize, &u32)| {
                    u8::try_from(id).map_err(|_| Error::TokenRange { index, id, vocab: 256 })
                };
                let bytes: Vec<u8> = ids.iter().enumerate().map(byte).collect::<Result<_, _>>()?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Self::HuggingFace { path, tokenizer } => tokenizer
                .decode(ids, true)
                .map_err(|source| Error::Tokenizer { path: path.clone(), reason: source.to_string() }),
        }
    }
}
