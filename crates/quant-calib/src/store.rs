//! Statistics as bytes: a safetensors file whose metadata has an index.
//!
//! The one key of the metadata, `leanbits-calibration`, holds the index as JSON: a version, and what each input, layer and
//! cache is. Numbers that sum are tensors, named by kind and position (`inputs.0.gram.sums`), so that what is read is to the
//! bit what was written; calibration that goes on from it ends with the same bits as one that was never interrupted.

use crate::gatherer::Input;
use crate::quantiles::{Buckets, Histogram, SIGNIFICAND};
use crate::{
    ChannelStats, Error, ExpertCounts, Gatherer, Gram, KvStatistics, Needs, QuantileSketch, Reservoir, Statistics,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

const KEY: &str = "leanbits-calibration";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    version: u32,
    inputs: Vec<InputEntry>,
    shared: BTreeMap<String, String>,
    experts: Vec<ExpertEntry>,
    kv: Vec<KvEntry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputEntry {
    linear: String,
    batches: u64,
    statistics: Entry,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpertEntry {
    layer: String,
    experts: usize,
    top_k: usize,
    tokens: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KvEntry {
    layer: String,
    heads: usize,
    head_dim: usize,
    streams: [Entry; 3],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    features: usize,
    tokens: u64,
    needs: Needs,
    /// Of the reservoir: the seeds, and the numbers drawn of the first.
    sampled: Option<(Vec<u64>, u64)>,
}

impl Gatherer {
    /// All that was gathered, as the bytes of a safetensors file.
    ///
    /// # Errors
    ///
    /// [`Error::Stored`] when the format cannot hold it (a header beyond 100 MB).
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let mut writer = Writer::default();
        let inputs = self.inputs.iter().enumerate().map(|(i, (linear, input))| InputEntry {
            linear: linear.clone(),
            batches: input.batches,
            statistics: writer.statistics(&format!("inputs.{i}"), &input.statistics),
        });
        let inputs = inputs.collect();
        for (i, counts) in self.experts.values().enumerate() {
            writer.experts(&format!("experts.{i}"), counts);
        }
        let experts = self.experts.iter().map(|(layer, counts)| ExpertEntry {
            layer: layer.clone(),
            experts: counts.experts(),
            top_k: counts.top_k,
            tokens: counts.tokens,
        });
        let kv = self.kv.iter().enumerate().map(|(i, (layer, kv))| KvEntry {
            layer: layer.clone(),
            heads: kv.heads,
            head_dim: kv.head_dim,
            streams: [0, 1, 2].map(|stream| writer.statistics(&format!("kv.{i}.{stream}"), &kv.streams[stream])),
        });
        let (kv, experts) = (kv.collect(), experts.collect());
        let index = Index { version: VERSION, inputs, shared: self.shared.clone(), experts, kv };
        let json = serde_json::to_string(&index).map_err(|error| stored("index", error.to_string()))?;
        writer.finish(json)
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Stored`], naming the tensor or entry, for bytes that are not such a file, for another version, for missing, misshapen
    /// or additional tensors, and for figures that no calibration gives: NaN, ranges upside down, counts that do not add up.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let index = reader.index(bytes)?;
        let mut found = Self { shared: index.shared, ..Self::default() };
        for (i, entry) in index.inputs.into_iter().enumerate() {
            let statistics = reader.statistics(&format!("inputs.{i}"), entry.statistics)?;
            insert_once(&mut found.inputs, entry.linear, Input { statistics, batches: entry.batches })?;
        }
        for (i, entry) in index.experts.into_iter().enumerate() {
            let counts = reader.experts(&format!("experts.{i}"), &entry)?;
            insert_once(&mut found.experts, entry.layer, counts)?;
        }
        for (i, entry) in index.kv.into_iter().enumerate() {
            let (heads, head_dim) = (entry.heads, entry.head_dim);
            let mut streams = Vec::with_capacity(3);
            for (stream, entry) in entry.streams.into_iter().enumerate() {
                let name = format!("kv.{i}.{stream}");
                check(
                    heads.checked_mul(head_dim) == Some(entry.features),
                    &name,
                    "its width is not heads times channels",
                )?;
                streams.push(reader.statistics(&name, entry)?);
            }
            let Ok(streams) = <[Statistics; 3]>::try_from(streams) else { unreachable!("three streams were read") };
            insert_once(&mut found.kv, entry.layer, KvStatistics { heads, head_dim, streams })?;
        }
        for (linear, leader) in &found.shared {
            let known = found.inputs.contains_key(leader) && !found.inputs.contains_key(linear);
            check(known, linear, "it shares the input of a linear that has none, or has its own")?;
        }
        reader.finish()?;
        Ok(found)
    }
}

fn stored(item: &str, reason: impl Into<String>) -> Error {
    Error::Stored { item: item.to_owned(), reason: reason.into() }
}

fn check(holds: bool, item: &str, reason: &str) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(stored(item, reason)) }
}

fn insert_once<T>(map: &mut BTreeMap<String, T>, name: String, value: T) -> Result<(), Error> {
    check(!map.contains_key(&name), &name, "it occurs twice")?;
    map.insert(name, value);
    Ok(())
}

/// Collects tensors.
#[derive(Default)]
struct Writer(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Writer {
    fn f32(&mut self, name: String, shape: &[usize], values: &[f32]) {
        self.0.push((name, Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }

    fn f64(&mut self, name: String, values: &[f64]) {
        self.0.push((name, Dtype::F64, vec![values.len()], values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }

    fn u64(&mut self, name: String, shape: &[usize], values: &[u64]) {
        self.0.push((name, Dtype::U64, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
    }

    fn statistics(&mut self, name: &str, statistics: &Statistics) -> Entry {
        let features = statistics.features;
        if let Some(gram) = &statistics.gram {
            let tokens = gram.pending.len().checked_div(features).unwrap_or(0);
            self.f64(format!("{name}.gram.sums"), &gram.sums);
            self.f32(format!("{name}.gram.pending"), &[tokens, features], &gram.pending);
            self.f64(format!("{name}.gram.weight_sum"), &[gram.weight_sum]);
        }
        if let Some(channels) = &statistics.channels {
            self.f32(format!("{name}.channels.min"), &[features], &channels.min);
            self.f32(format!("{name}.channels.max"), &[features], &channels.max);
            self.f64(format!("{name}.channels.shift"), &channels.shift);
            self.f64(format!("{name}.channels.sum"), &channels.sum);
            self.f64(format!("{name}.channels.square_sum"), &channels.square_sum);
            self.f64(format!("{name}.channels.abs_sum"), &channels.abs_sum);
        }
        if let Some(quantiles) = &statistics.quantiles {
            let histograms = &quantiles.histograms;
            let layout = |h: &Histogram| {
                let run = |b: &Buckets| [u64::from(b.first), b.counts.len() as u64];
                let ([a, b], [c, d]) = (run(&h.negative), run(&h.positive));
                [a, b, c, d, h.zeros]
            };
            let layout: Vec<u64> = histograms.iter().flat_map(layout).collect();
            let counts = histograms.iter().flat_map(|h| h.negative.counts.iter().chain(&h.positive.counts));
            let counts: Vec<u64> = counts.copied().collect();
            let range: Vec<f32> = histograms.iter().flat_map(|h| [h.min, h.max]).collect();
            self.u64(format!("{name}.quantiles.layout"), &[histograms.len(), 5], &layout);
            self.u64(format!("{name}.quantiles.counts"), &[counts.len()], &counts);
            self.f32(format!("{name}.quantiles.range"), &[histograms.len(), 2], &range);
        }
        if let Some(reservoir) = &statistics.reservoir {
            let keys: Vec<u64> = reservoir.kept.keys().flat_map(|&(number, arrival)| [number, arrival]).collect();
            self.u64(format!("{name}.reservoir.keys"), &[reservoir.len(), 2], &keys);
            self.f32(format!("{name}.reservoir.rows"), &[reservoir.len(), features], &reservoir.rows());
            self.f32(format!("{name}.reservoir.weights"), &[reservoir.len()], &reservoir.weights());
        }
        let sampled = statistics.reservoir.as_ref().map(|r| (r.seeds.clone(), r.drawn));
        Entry { features, tokens: statistics.tokens, needs: statistics.needs.clone(), sampled }
    }

    fn experts(&mut self, name: &str, counts: &ExpertCounts) {
        self.u64(format!("{name}.counts"), &[counts.experts()], &counts.counts);
        self.f64(format!("{name}.gate_sums"), &counts.gate_sums);
        self.f64(format!("{name}.squared_gate_sums"), &counts.squared_gate_sums);
    }

    fn finish(self, index: String) -> Result<Vec<u8>, Error> {
        let mut views = Vec::with_capacity(self.0.len());
        for (name, dtype, shape, bytes) in &self.0 {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            views.push((name, view.map_err(|error| stored(name, error.to_string()))?));
        }
        let metadata = HashMap::from([(KEY.to_owned(), index)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| stored("file", error.to_string()))
    }
}

/// Takes tensors, each once, and checks what is in them.
struct Reader<'a> {
    tensors: SafeTensors<'a>,
    taken: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Error> {
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| stored("file", error.to_string()))?;
        Ok(Self { tensors, taken: BTreeSet::new() })
    }

    fn index(&self, bytes: &[u8]) -> Result<Index, Error> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| stored("file", error.to_string()))?;
        let index = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY));
        let index = index.ok_or_else(|| stored("file", format!("its metadata lacks {KEY:?}")))?;
        let unreadable = |error: serde_json::Error| stored("index", error.to_string());
        let Version { version } = serde_json::from_str(index).map_err(unreadable)?;
        check(version == VERSION, "index", &format!("version {version}, this program reads {VERSION}"))?;
        serde_json::from_str(index).map_err(unreadable)
    }

    /// The bytes of a tensor of this type and rank, and its shape; sizes that are expected are `Some`.
    fn bytes(&mut self, name: &str, dtype: Dtype, expected: &[Option<usize>]) -> Result<(&'a [u8], Vec<usize>), Error> {
        let view = self.tensors.tensor(name).map_err(|_| stored(name, "the tensor is missing"))?;
        check(view.dtype() == dtype, name, &format!("its type is {}, expected {dtype}", view.dtype()))?;
        let shape = view.shape().to_vec();
        let fits = shape.len() == expected.len() && shape.iter().zip(expected).all(|(n, e)| e.is_none_or(|e| e == *n));
        check(fits, name, &format!("its shape is {shape:?}"))?;
        self.taken.insert(name.to_owned());
        Ok((view.data(), shape))
    }

    fn u64(&mut self, name: &str, shape: &[Option<usize>]) -> Result<Vec<u64>, Error> {
        let (bytes, _) = self.bytes(name, Dtype::U64, shape)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
    }

    /// Floats that may be infinite.
    fn any_f32(&mut self, name: &str, shape: &[Option<usize>]) -> Result<Vec<f32>, Error> {
        let (bytes, _) = self.bytes(name, Dtype::F32, shape)?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    fn f32(&mut self, name: &str, shape: &[Option<usize>]) -> Result<Vec<f32>, Error> {
        let values = self.any_f32(name, shape)?;
        check(values.iter().all(|v| v.is_finite()), name, "it has a value that is NaN or infinite")?;
        Ok(values)
    }

    fn f64(&mut self, name: &str, length: Option<usize>, least: f64) -> Result<Vec<f64>, Error> {
        let (bytes, _) = self.bytes(name, Dtype::F64, &[length])?;
        let values: Vec<f64> = bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let good = values.iter().all(|v| v.is_finite() && *v >= least);
        check(good, name, "it has a value that is NaN, infinite or negative")?;
        Ok(values)
    }

    fn statistics(&mut self, name: &str, entry: Entry) -> Result<Statistics, Error> {
        let Entry { features, tokens, needs, sampled } = entry;
        let gram = needs.gram.then(|| self.gram(&format!("{name}.gram"), features, tokens)).transpose()?;
        let channels =
            needs.channels.then(|| self.channels(&format!("{name}.channels"), features, tokens)).transpose()?;
        let quantiles = match needs.quantiles {
            Some(q) => Some(self.quantiles(&format!("{name}.quantiles"), features, tokens, q.bits, q.per_channel)?),
            None => None,
        };
        let reservoir = match (needs.reservoir, sampled) {
            (Some(capacity), Some(sampled)) => {
                Some(self.reservoir(&format!("{name}.reservoir"), features, tokens, capacity, sampled)?)
            }
            (None, None) => None,
            _ => return Err(stored(name, "it has a reservoir or its seeds, but not both")),
        };
        Ok(Statistics { features, needs, tokens, gram, channels, quantiles, reservoir })
    }

    fn gram(&mut self, name: &str, features: usize, tokens: u64) -> Result<Gram, Error> {
        let sums = self.f64(&format!("{name}.sums"), None, f64::NEG_INFINITY)?;
        let pending = self.f32(&format!("{name}.pending"), &[None, Some(features)])?;
        let weight_sum = self.f64(&format!("{name}.weight_sum"), Some(1), 0.0)?;
        Gram::from_parts(features, tokens, weight_sum[0], sums, pending)
            .ok_or_else(|| stored(name, "it has not the size that its features and tokens ask for"))
    }

    fn channels(&mut self, name: &str, features: usize, tokens: u64) -> Result<ChannelStats, Error> {
        let length = Some(features);
        let min = self.any_f32(&format!("{name}.min"), &[length])?;
        let max = self.any_f32(&format!("{name}.max"), &[length])?;
        let ordered = |(min, max): (&f32, &f32)| match tokens {
            0 => *min == f32::INFINITY && *max == f32::NEG_INFINITY,
            _ => min.is_finite() && max.is_finite() && min <= max,
        };
        check(min.iter().zip(&max).all(ordered), name, "a range is upside down or not finite")?;
        Ok(ChannelStats {
            tokens,
            min,
            max,
            shift: self.f64(&format!("{name}.shift"), length, f64::NEG_INFINITY)?,
            sum: self.f64(&format!("{name}.sum"), length, f64::NEG_INFINITY)?,
            square_sum: self.f64(&format!("{name}.square_sum"), length, 0.0)?,
            abs_sum: self.f64(&format!("{name}.abs_sum"), length, 0.0)?,
        })
    }

    fn quantiles(
        &mut self,
        name: &str,
        features: usize,
        tokens: u64,
        bits: u32,
        per_channel: bool,
    ) -> Result<QuantileSketch, Error> {
        let length = if per_channel { features } else { 1 };
        let layout = self.u64(&format!("{name}.layout"), &[Some(length), Some(5)])?;
        let range = self.f32(&format!("{name}.range"), &[Some(length), Some(2)])?;
        let counts = self.u64(&format!("{name}.counts"), &[None])?;
        // Sizes were compared with those of tensors, so there is room for as many histograms.
        let mut sketch = QuantileSketch::new(features, bits, per_channel)?;
        let values = if per_channel { Some(tokens) } else { tokens.checked_mul(features as u64) };
        let buckets = (1_u64 << 31) >> (SIGNIFICAND - bits);
        let mut rest = counts.as_slice();
        let mut run = |first: u64, length: u64| {
            let end = first.checked_add(length).filter(|end| *end <= buckets)?;
            let (counts, later) = rest.split_at_checked(usize::try_from(end - first).ok()?)?;
            rest = later;
            Some(Buckets { first: u32::try_from(first).ok()?, counts: counts.to_vec() })
        };
        for ((histogram, layout), range) in
            sketch.histograms.iter_mut().zip(layout.as_chunks::<5>().0).zip(range.as_chunks::<2>().0)
        {
            let &[negative, negative_length, positive, positive_length, zeros] = layout;
            let (Some(negative), Some(positive)) = (run(negative, negative_length), run(positive, positive_length))
            else {
                return Err(stored(name, "its buckets do not exist"));
            };
            let total = negative.counts.iter().chain(&positive.counts).try_fold(zeros, |sum, n| sum.checked_add(*n));
            let good = total.is_some() && total == values && range[0] <= range[1];
            check(good, name, "its counts are not those of all tokens")?;
            let [min, max] = *range;
            *histogram = Histogram { negative, zeros, positive, total: total.unwrap_or(0), min, max };
        }
        check(rest.is_empty(), name, "it has more counts than buckets")?;
        sketch.tokens = tokens;
        Ok(sketch)
    }

    fn reservoir(
        &mut self,
        name: &str,
        features: usize,
        tokens: u64,
        capacity: usize,
        (seeds, drawn): (Vec<u64>, u64),
    ) -> Result<Reservoir, Error> {
        let kept = usize::try_from(tokens).map_or(capacity, |tokens| tokens.min(capacity));
        let keys = self.u64(&format!("{name}.keys"), &[Some(kept), Some(2)])?;
        let rows = self.f32(&format!("{name}.rows"), &[Some(kept), Some(features)])?;
        let weights = self.f32(&format!("{name}.weights"), &[Some(kept)])?;
        let keys: Vec<(u64, u64)> =
            keys.as_chunks::<2>().0.iter().map(|[number, arrival]| (*number, *arrival)).collect();
        let ordered = keys.is_sorted_by(|a, b| a < b) && keys.iter().all(|(_, arrival)| *arrival < tokens);
        check(ordered, name, "its rows are not in order")?;
        check(weights.iter().all(|w| *w >= 0.0), name, "it has a negative weight")?;
        let seed = *seeds.first().ok_or_else(|| stored(name, "it has no seed"))?;
        check(drawn <= tokens, name, "it drew more numbers than it saw tokens")?;
        let mut reservoir = Reservoir::new(features, capacity, seed);
        (reservoir.seeds, reservoir.seen) = (seeds, tokens);
        reservoir.resume(drawn);
        let rows = rows.chunks(features.max(1)).map(<[f32]>::to_vec).chain(std::iter::repeat(Vec::new()));
        reservoir.kept = keys.into_iter().zip(rows.zip(weights)).collect();
        Ok(reservoir)
    }

    fn experts(&mut self, name: &str, entry: &ExpertEntry) -> Result<ExpertCounts, Error> {
        let &ExpertEntry { experts, top_k, tokens, .. } = entry;
        check((1..=experts).contains(&top_k), name, "it chooses none or more experts than there are")?;
        let counts = self.u64(&format!("{name}.counts"), &[Some(experts)])?;
        let choices = counts.iter().try_fold(0_u64, |sum, n| sum.checked_add(*n));
        let good = choices.is_some() && choices == tokens.checked_mul(top_k as u64);
        check(good && counts.iter().all(|n| *n <= tokens), name, "its counts are not those of all tokens")?;
        Ok(ExpertCounts {
            top_k,
            tokens,
            counts,
            gate_sums: self.f64(&format!("{name}.gate_sums"), Some(experts), 0.0)?,
            squared_gate_sums: self.f64(&format!("{name}.squared_gate_sums"), Some(experts), 0.0)?,
        })
    }

    fn finish(self) -> Result<(), Error> {
        match self.tensors.names().into_iter().find(|name| !self.taken.contains(*name)) {
            Some(name) => Err(stored(name, "nothing in the index asks for the tensor")),
            None => Ok(()),
        }
    }
}
