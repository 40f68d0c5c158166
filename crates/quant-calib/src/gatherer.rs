//! The statistics of many inputs, by name.

use crate::{Error, ExpertCounts, KvStatistics, KvStream, Needs, Statistics};
use std::collections::BTreeMap;

/// What calibration gathers of a model, or of the part of it that is worked on: the inputs of linears, the choices of
/// routers, the streams of caches.
///
/// Linears that read the same input share one set of statistics: of `q_proj`, `k_proj` and `v_proj` only the first has its
/// input added, for the needs of all three.
///
/// # Examples
///
/// ```
/// use quant_calib::{Gatherer, Needs};
/// let mut gatherer = Gatherer::default();
/// gatherer.declare("q_proj", 2, &Needs::gram())?;
/// gatherer.declare("k_proj", 2, &Needs::channels())?;
/// gatherer.share("k_proj", "q_proj")?; // both are now gathered once
///
/// for linear in ["q_proj", "k_proj", "down_proj"] {
///     gatherer.observe(linear, &[1.0, 2.0], None)?; // as the model computes them
/// }
/// let statistics = gatherer.statistics("k_proj")?;
/// assert_eq!(statistics.tokens(), 1);
/// assert!(statistics.gram().is_some() && statistics.channels().is_some());
/// # Ok::<(), quant_calib::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gatherer {
    /// By the linear that is listened to.
    pub(crate) inputs: BTreeMap<String, Input>,
    /// From a linear to the one that is listened to in its place.
    pub(crate) shared: BTreeMap<String, String>,
    pub(crate) experts: BTreeMap<String, ExpertCounts>,
    pub(crate) kv: BTreeMap<String, KvStatistics>,
}

/// One input and how many batches of it were added.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Input {
    pub(crate) statistics: Statistics,
    pub(crate) batches: u64,
}

impl Gatherer {
    /// Starts to gather what `needs` name of the input of `linear`, in addition to what was declared for it before.
    ///
    /// # Errors
    ///
    /// [`Error::Declared`] when tokens were already gathered for it, [`Error::Features`] when it was declared with another
    /// width, [`Error::Settings`] when the needs do not unite with those declared before.
    pub fn declare(&mut self, linear: &str, features: usize, needs: &Needs) -> Result<(), Error> {
        let leader = self.shared.get(linear).map_or(linear, String::as_str);
        let statistics = match self.inputs.get(leader) {
            Some(Input { batches: 1.., .. }) => return Err(gathering(leader)),
            Some(Input { statistics, .. }) if statistics.features() != features => {
                return Err(Error::Features { features: statistics.features(), found: features });
            }
            Some(Input { statistics, .. }) => Statistics::new(features, &statistics.needs().union(needs)?)?,
            None => Statistics::new(features, needs)?,
        };
        self.inputs.insert(leader.to_owned(), Input { statistics, batches: 0 });
        Ok(())
    }

    /// Says that `linear` reads the same input as `leader`, and unites the needs of both under `leader`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when `leader` was not declared, [`Error::Declared`] when the two are one, when `linear` shares
    /// another's input or others share its, or when tokens were already gathered for it; else as
    /// [`declare`](Self::declare). Nothing is changed on error.
    pub fn share(&mut self, linear: &str, leader: &str) -> Result<(), Error> {
        let leader = self.shared.get(leader).map_or(leader, String::as_str).to_owned();
        let refuse = |reason| Err(Error::Declared { name: linear.to_owned(), reason });
        if !self.inputs.contains_key(&leader) {
            return Err(Error::Unknown { name: leader });
        }
        match self.shared.get(linear) {
            Some(other) if *other == leader => return Ok(()),
            Some(_) => return refuse("it shares the input of another linear"),
            None if linear == leader => return refuse("a linear cannot share its own input"),
            None if self.shared.values().any(|other| other == linear) => return refuse("others share its input"),
            None => {}
        }
        match self.inputs.get(linear) {
            Some(Input { batches: 1.., .. }) => return Err(gathering(linear)),
            Some(Input { statistics, .. }) => {
                let (features, needs) = (statistics.features(), statistics.needs().clone());
                self.declare(&leader, features, &needs)?;
                self.inputs.remove(linear);
            }
            None => {}
        }
        self.shared.insert(linear.to_owned(), leader);
        Ok(())
    }

    /// Adds tokens `rows` `[tokens, features]` that flow into `linear`, with the gates of routed tokens; returns whether it is
    /// one that is listened to. The inputs of linears that share another's or were not declared are passed over.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] naming the linear and the batch, around what [`Statistics::add`] says. Nothing is added on error.
    pub fn observe(&mut self, linear: &str, rows: &[f32], gates: Option<&[f32]>) -> Result<bool, Error> {
        let Some(input) = self.inputs.get_mut(linear) else { return Ok(false) };
        input.statistics.add(rows, gates).map_err(|error| error.of_input(linear, input.batches))?;
        input.batches += 1;
        Ok(true)
    }

    /// The statistics of the input of `linear`.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when nothing was declared for it.
    pub fn statistics(&self, linear: &str) -> Result<&Statistics, Error> {
        let leader = self.shared.get(linear).map_or(linear, String::as_str);
        let input = self.inputs.get(leader).ok_or_else(|| Error::Unknown { name: linear.to_owned() })?;
        Ok(&input.statistics)
    }

    /// Takes the statistics that `linear` and those that share its input have, and forgets all of them.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] when nothing was declared for it.
    pub fn take(&mut self, linear: &str) -> Result<Statistics, Error> {
        let leader = self.shared.get(linear).map_or(linear, String::as_str).to_owned();
        let input = self.inputs.remove(&leader).ok_or_else(|| Error::Unknown { name: linear.to_owned() })?;
        self.shared.retain(|_, other| *other != leader);
        Ok(input.statistics)
    }

    /// The inputs: the linear that is listened to, those that share its input, the statistics; in the order of names.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, Vec<&str>, &Statistics)> {
        self.inputs.iter().map(|(leader, input)| {
            let sharing = self.shared.iter().filter(|(_, other)| *other == leader).map(|(name, _)| name.as_str());
            (leader.as_str(), sharing.collect(), &input.statistics)
        })
    }

    /// Starts to count the choices of the router of `layer`.
    ///
    /// # Errors
    ///
    /// [`Error::Declared`] when it was declared before, [`Error::Router`] unless `1 ≤ top_k ≤ experts`.
    pub fn declare_experts(&mut self, layer: &str, experts: usize, top_k: usize) -> Result<(), Error> {
        let counts = ExpertCounts::new(experts, top_k)?;
        declare_once(&mut self.experts, layer, counts)
    }

    /// Adds the choices `ids` `[tokens, top_k]` of the router of `layer`, and their gates; returns whether it was declared.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] naming the layer and the number of tokens before, around what [`ExpertCounts::add`] says.
    pub fn observe_routing(&mut self, layer: &str, ids: &[u32], gates: Option<&[f32]>) -> Result<bool, Error> {
        let Some(counts) = self.experts.get_mut(layer) else { return Ok(false) };
        let seen = counts.tokens();
        counts.add(ids, gates).map_err(|error| error.of_input(layer, seen))?;
        Ok(true)
    }

    /// The choices of routers, by layer.
    #[must_use]
    pub fn experts(&self) -> &BTreeMap<String, ExpertCounts> {
        &self.experts
    }

    /// Starts to gather what `needs` name of the keys and values of `layer`.
    ///
    /// # Errors
    ///
    /// [`Error::Declared`] when it was declared before; else as [`KvStatistics::new`].
    pub fn declare_kv(&mut self, layer: &str, heads: usize, head_dim: usize, needs: &Needs) -> Result<(), Error> {
        let kv = KvStatistics::new(heads, head_dim, needs)?;
        declare_once(&mut self.kv, layer, kv)
    }

    /// Adds tokens `rows` `[tokens, heads · head_dim]` of a stream of the cache of `layer`; returns whether it was declared.
    ///
    /// # Errors
    ///
    /// [`Error::Input`] naming the layer and the number of tokens before, around what [`KvStatistics::add`] says.
    pub fn observe_kv(&mut self, layer: &str, stream: KvStream, rows: &[f32]) -> Result<bool, Error> {
        let Some(kv) = self.kv.get_mut(layer) else { return Ok(false) };
        let seen = kv.stream(stream).tokens();
        kv.add(stream, rows).map_err(|error| error.of_input(layer, seen))?;
        Ok(true)
    }

    /// The keys and values, by layer.
    #[must_use]
    pub fn kv(&self) -> &BTreeMap<String, KvStatistics> {
        &self.kv
    }

    /// Adds what another worker gathered for the same declarations.
    ///
    /// # Errors
    ///
    /// [`Error::Unknown`] for a name that only one of the two has; else as the `merge` of each. Nothing is changed on
    /// error.
    pub fn merge(&mut self, other: &Self) -> Result<(), Error> {
        let mut merged = self.clone();
        if let Some(name) = [difference(&self.shared, &other.shared), difference(&self.inputs, &other.inputs)]
            .into_iter()
            .chain([difference(&self.experts, &other.experts), difference(&self.kv, &other.kv)])
            .find_map(|name| name)
        {
            return Err(Error::Unknown { name });
        }
        for (input, other) in merged.inputs.values_mut().zip(other.inputs.values()) {
            input.statistics.merge(&other.statistics)?;
            input.batches += other.batches;
        }
        for (experts, other) in merged.experts.values_mut().zip(other.experts.values()) {
            experts.merge(other)?;
        }
        for (kv, other) in merged.kv.values_mut().zip(other.kv.values()) {
            kv.merge(other)?;
        }
        *self = merged;
        Ok(())
    }
}

fn gathering(name: &str) -> Error {
    Error::Declared { name: name.to_owned(), reason: "tokens were already gathered for it" }
}

fn declare_once<T>(declared: &mut BTreeMap<String, T>, name: &str, new: T) -> Result<(), Error> {
    if declared.contains_key(name) {
        return Err(Error::Declared { name: name.to_owned(), reason: "it was declared before" });
    }
    declared.insert(name.to_owned(), new);
    Ok(())
}

/// The first name that only one of two maps has.
fn difference<T>(left: &BTreeMap<String, T>, right: &BTreeMap<String, T>) -> Option<String> {
    let missing = |from: &BTreeMap<String, T>, other: &BTreeMap<String, T>| {
        from.keys().find(|name| !other.contains_key(*name)).cloned()
    };
    missing(left, right).or_else(|| missing(right, left))
}
