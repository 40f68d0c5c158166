//! Cutting texts into windows.

use crate::{Error, Tokens};
use std::ops::Range;

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowOptions {
    /// Tokens in a window, the begin token included.
    pub context: usize,
    /// Tokens from one window's begin to the next. By default a window begins where the last one ended; less
    /// gives every token more past, for more work.
    pub stride: Option<usize>,
    /// A token put in front of every window.
    pub bos: Option<u32>,
    /// A window that would bring the scored tokens above this is left out, and so is all after
    /// it; a first window too long is cut.
    pub max_tokens: Option<usize>,
}

impl WindowOptions {
    /// Non-overlapping windows over the whole text, without a begin token.
    #[must_use]
    pub fn new(context: usize) -> Self {
        Self { context, stride: None, bos: None, max_tokens: None }
    }
}

/// A run of tokens, some of which are predicted from those before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens, begin token included.
    pub tokens: Vec<u32>,
    /// Which of them are predicted; never the first.
    pub scored: Range<usize>,
    /// Bytes of text that the predicted tokens stand for.
    pub bytes: u64,
}

/// What an evaluation walks over.
///
/// # Examples
///
/// ```
/// use quant_models::{Text, eval::{WindowOptions, Windows}};
///
/// let tokens = Text::Bytes.encode(b"twenty-six bytes of a text")?;
/// let windows = Windows::of_text(&tokens, WindowOptions::new(8))?;
/// // Three whole windows; in each, all tokens but the first are predicted.
/// assert_eq!((windows.list().len(), windows.scored()), (3, 21));
/// # Ok::<(), quant_models::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    list: Vec<Window>,
}

impl Windows {
    /// Cuts one text into windows. Without a begin token the first token of the text is not
    /// predicted, nor is the first of each window when windows do not overlap; otherwise every token
    /// is predicted once, in the first window that holds it. The rest that fills no window is left out, unless
    /// it is all there is.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for a context or stride that leaves nothing to predict, [`Error::TooFewTokens`].
    pub fn of_text(text: &Tokens, options: WindowOptions) -> Result<Self, Error> {
        let (body, skipped) = options.checked()?;
        let stride = options.stride.unwrap_or(body);
        let mut list = List::new(options);
        let mut start = 0;
        loop {
            let end = start + body;
            if end > text.len() && start > 0 {
                break;
            }
            let end = end.min(text.len());
            let known = if start == 0 { skipped } else { (body - stride).max(skipped) };
            if !list.push(text, start..end, known) {
                break;
            }
            start += stride;
        }
        list.finish(text.len(), skipped)
    }

    /// Takes the beginning of each text as one window, so that nothing is predicted across documents.
    ///
    /// # Errors
    ///
    /// As [`Windows::of_text`].
    pub fn of_documents(texts: &[Tokens], options: WindowOptions) -> Result<Self, Error> {
        let (body, skipped) = options.checked()?;
        let mut list = List::new(options);
        for text in texts {
            if text.len() > skipped && !list.push(text, 0..text.len().min(body), skipped) {
                break;
            }
        }
        list.finish(texts.iter().map(Tokens::len).sum(), skipped)
    }

    /// The windows, in the order of the text.
    #[must_use]
    pub fn list(&self) -> &[Window] {
        &self.list
    }

    /// Tokens that are predicted.
    #[must_use]
    pub fn scored(&self) -> usize {
        self.list.iter().map(|window| window.scored.len()).sum()
    }

    /// Consecutive windows that are run together: at most `tokens` of them, but at least one window.
    pub(crate) fn batches(&self, tokens: usize) -> impl Iterator<Item = &[Window]> {
        let mut rest = self.list.as_slice();
        std::iter::from_fn(move || {
            let mut held = 0;
            let fits = rest.iter().take_while(|window| {
                held += window.tokens.len();
                held <= tokens
            });
            let (batch, after) = rest.split_at(fits.count().max(1).min(rest.len()));
            rest = after;
            (!batch.is_empty()).then_some(batch)
        })
    }
}

impl WindowOptions {
    /// Tokens of text in a window, and how many of its first cannot be predicted.
    fn checked(&self) -> Result<(usize, usize), Error> {
        let skipped = usize::from(self.bos.is_none());
        if self.context < 2 {
            let value = self.context.to_string();
            return Err(Error::BadSetting { name: "context", value, expected: "at least 2 tokens" });
        }
        let body = self.context - usize::from(self.bos.is_some());
        if let Some(stride) = self.stride
            && !(1..=body).contains(&stride)
        {
            let (value, expected) = (stride.to_string(), "from 1 to the tokens of text in a window");
            return Err(Error::BadSetting { name: "stride", value, expected });
        }
        if self.max_tokens == Some(0) {
            return Err(Error::BadSetting { name: "tokens", value: "0".into(), expected: "at least 1" });
        }
        Ok((body, skipped))
    }
}

/// Windows so far, and how many more tokens may be scored.
struct List {
    options: WindowOptions,
    list: Vec<Window>,
    left: usize,
}

impl List {
    fn new(options: WindowOptions) -> Self {
        Self { options, list: Vec::new(), left: options.max_tokens.unwrap_or(usize::MAX) }
    }

    /// Adds the tokens `range` of a text, of which the first `known` are not predicted. False when the limit is reached.
    fn push(&mut self, text: &Tokens, mut range: Range<usize>, known: usize) -> bool {
        if range.len() <= known {
            return false;
        }
        if range.len() - known > self.left {
            if !self.list.is_empty() {
                return false;
            }
            range.end = range.start + known + self.left;
        }
        let scored = range.start + known..range.end;
        self.left -= scored.len();
        let before = if scored.start == 0 { 0 } else { text.ends[scored.start - 1] };
        let tokens: Vec<u32> = self.options.bos.into_iter().chain(text.ids[range].iter().copied()).collect();
        self.list.push(Window {
            scored: tokens.len() - scored.len()..tokens.len(),
            bytes: (text.ends[scored.end - 1] - before) as u64,
            tokens,
        });
        true
    }

    fn finish(self, found: usize, skipped: usize) -> Result<Windows, Error> {
        if self.list.is_empty() {
            return Err(Error::TooFewTokens { found, needed: skipped + 1 });
        }
        Ok(Windows { list: self.list })
    }
}
