//! A uniform sample of tokens.

use crate::Error;
use crate::rows::Rows;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// A uniform sample, without replacement, of the tokens of one input.
///
/// The token that is seen as the `n`-th gets the `n`-th 64-bit number of the ChaCha8 stream of the seed; the tokens with the
/// smallest numbers are kept. From this follows:
///
/// * the sample depends on the order of the tokens only, not on how they were split into calls;
/// * reservoirs of one seed that see the same tokens sample the same tokens, so that inputs of different linears
///   stay paired;
/// * rows come in the order of their numbers, which is random: the first `k` of them are the sample that a reservoir
///   of `k` rows would have kept;
/// * reservoirs of different seeds merge into a sample of all their tokens.
///
/// # Examples
///
/// ```
/// use quant_calib::Reservoir;
/// let mut reservoir = Reservoir::new(2, 3, 7);
/// for token in 0..100_u8 {
///     reservoir.add(&[f32::from(token), 1.0], None)?;
/// }
/// assert_eq!((reservoir.len(), reservoir.seen()), (3, 100));
/// assert!(reservoir.rows().chunks(2).all(|row| row[0] < 100.0 && row[1] == 1.0));
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Reservoir {
    pub(crate) features: usize,
    pub(crate) capacity: usize,
    /// Its own seed, then those of all that were merged into it.
    pub(crate) seeds: Vec<u64>,
    pub(crate) seen: u64,
    /// Numbers taken from its own stream.
    pub(crate) drawn: u64,
    numbers: ChaCha8Rng,
    /// By number and, among equal numbers, order of arrival: the row and its weight.
    pub(crate) kept: BTreeMap<(u64, u64), (Vec<f32>, f32)>,
}

impl PartialEq for Reservoir {
    fn eq(&self, other: &Self) -> bool {
        // The state of the stream follows from the seed and the count.
        (self.features, self.capacity, &self.seeds) == (other.features, other.capacity, &other.seeds)
            && (self.seen, self.drawn, &self.kept) == (other.seen, other.drawn, &other.kept)
    }
}

impl Reservoir {
    /// Starts with no tokens; at most `capacity` will be kept.
    #[must_use]
    pub fn new(features: usize, capacity: usize, seed: u64) -> Self {
        let numbers = ChaCha8Rng::seed_from_u64(seed);
        Self { features, capacity, seeds: vec![seed], seen: 0, drawn: 0, numbers, kept: BTreeMap::new() }
    }

    /// Adds tokens `rows` `[tokens, features]` with their weights, which are kept beside them and do not change what is
    /// sampled.
    ///
    /// # Errors
    ///
    /// [`Error::Width`], [`Error::NonFinite`], [`Error::WeightCount`] and [`Error::Weight`] for bad input. Nothing is
    /// added on error.
    pub fn add(&mut self, rows: &[f32], weights: Option<&[f32]>) -> Result<(), Error> {
        self.add_rows(&Rows::new(rows, self.features, weights)?);
        Ok(())
    }

    pub(crate) fn add_rows(&mut self, rows: &Rows<'_>) {
        for (row, x) in rows.iter().enumerate() {
            let key = (self.numbers.next_u64(), self.seen);
            self.seen += 1;
            self.drawn += 1;
            if self.kept.len() < self.capacity || self.kept.last_key_value().is_some_and(|(last, _)| key < *last) {
                self.kept.insert(key, (x.to_vec(), rows.weight(row)));
                self.shrink();
            }
        }
    }

    /// Joins two samples into one of all tokens of both; the capacity becomes the smaller one. An empty
    /// reservoir becomes a copy.
    ///
    /// # Errors
    ///
    /// [`Error::Features`] for another width, [`Error::Settings`] for equal seeds, whose samples are not independent.
    /// Nothing is changed on error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        if self.features != other.features {
            return Err(Error::Features { features: self.features, found: other.features });
        }
        if other.seen == 0 {
            return Ok(());
        }
        let capacity = self.capacity.min(other.capacity);
        if self.seen == 0 {
            *self = other.clone();
        } else {
            if let Some(seed) = self.seeds.iter().find(|seed| other.seeds.contains(seed)) {
                let (left, right) = (format!("one of seed {seed}"), "another of the same seed".to_owned());
                return Err(Error::Settings { what: "seeds of reservoirs must differ", left, right });
            }
            for (&(number, arrival), kept) in &other.kept {
                self.kept.insert((number, self.seen + arrival), kept.clone());
            }
            self.seen += other.seen;
            self.seeds.extend(&other.seeds);
        }
        self.capacity = capacity;
        self.shrink();
        Ok(())
    }

    /// Width of the input.
    #[must_use]
    pub fn features(&self) -> usize {
        self.features
    }

    /// Tokens that are kept at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens that are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether no token is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Tokens that were seen.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The kept tokens `[len, features]`, in random order.
    #[must_use]
    pub fn rows(&self) -> Vec<f32> {
        self.kept.values().flat_map(|(row, _)| row).copied().collect()
    }

    /// The weight of each kept token, 1 where none was given.
    #[must_use]
    pub fn weights(&self) -> Vec<f32> {
        self.kept.values().map(|(_, weight)| *weight).collect()
    }

    fn shrink(&mut self) {
        while self.kept.len() > self.capacity {
            self.kept.pop_last();
        }
    }

    /// Puts the stream where it was after `drawn` numbers.
    pub(crate) fn resume(&mut self, drawn: u64) {
        self.drawn = drawn;
        self.numbers.set_word_pos(2 * u128::from(drawn));
    }
}
