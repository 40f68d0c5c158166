//! Making channels large without changing what a model computes: stress tests for quantizers.
//!
//! Wherever a channel is only ever scaled between two tensors, it can be scaled up in the first and down in the second.
//! Trained models do the same on their own (arXiv 2211.10438, 2306.12929); this makes it happen where and as strongly
//! as a test needs.

use crate::layer::{End, Side};
use crate::{Decoder, Error, Layer};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Between which tensors channels are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OutlierSite {
    /// Gains of a layer's norms up, the inputs of all linears behind them down: the residual activations that these
    /// linears read get outlier channels. In a mixture this covers router, experts and shared experts; in RWKV the
    /// token shift lies between, which scales each channel alike.
    Norms,
    /// Outputs of `v_proj` up, inputs of `o_proj` down: the value cache gets outlier channels. A channel of a value head
    /// is scaled in all query heads that read it. Not for RWKV, whose heads pass through a norm.
    Values,
    /// Outputs of `up_proj` up, inputs of `down_proj` down, in each expert of a mixture. In RWKV the outputs of
    /// `ffn.key` up and the inputs of `ffn.value` down by the square, since a squared ReLU lies between.
    Inner,
    /// Outputs of `k_proj`, bias included, up and outputs of `q_proj` down: the key cache gets outlier channels and
    /// large channel means. Both elements that the rotary turn mixes are scaled alike, in a key head and in all query
    /// heads that read it. Where heads pass through norms, the gains of these are scaled, which all heads share. Not
    /// for RWKV.
    Keys,
}

/// Which channels are scaled, and how much.
///
/// # Examples
///
/// ```
/// use quant_models::{Decoder, Outliers, OutlierSite};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
/// let model = Decoder::open(&folder)?;
/// let mut hard = model.clone();
/// Outliers { site: OutlierSite::Norms, channels: 4, factor: 64.0, seed: 1 }.inject(&mut hard)?;
///
/// let text = b"Once upon a time".map(u32::from);
/// let logits = |model: &Decoder| model.logits(&model.hidden(&[&text], None)?, 0..16);
/// assert_eq!(logits(&model)?, logits(&hard)?); // a power of two: not a bit differs
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outliers {
    /// Where.
    pub site: OutlierSite,
    /// Channels that are scaled at each place of a layer, such as each norm or each expert. Two elements that the rotary
    /// turn mixes are one channel.
    pub channels: usize,
    /// What they are multiplied with. Powers of two change no bit of the logits, short of overflow.
    pub factor: f32,
    /// Seed of the ChaCha8 stream (`seed_from_u64`, with the layer's index as its stream) that draws the channels.
    pub seed: u64,
}

/// What was scaled at one place of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// The slot whose outputs, or the vector whose elements, were scaled up.
    pub name: String,
    /// The elements of it, in rising order.
    pub elements: Vec<usize>,
}

impl Outliers {
    /// Scales channels in each layer of a model. Compressed weights that are touched become dense.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for a site that the family does not have, no channels or more than there are, a factor
    /// that is not above zero and finite; [`Error::NonFiniteWeight`] when a scaled weight overflows;
    /// [`Error::Linear`] when a compressed one cannot be decoded. The model is then unchanged.
    pub fn inject(&self, decoder: &mut Decoder) -> Result<Vec<Injected>, Error> {
        let mut layers = decoder.layers().to_vec();
        let mut injected = Vec::new();
        for layer in &mut layers {
            injected.extend(self.inject_layer(layer)?);
        }
        decoder.layers_mut().clone_from_slice(&layers);
        Ok(injected)
    }

    /// Scales channels in one layer, the same ones as in the whole model.
    ///
    /// # Errors
    ///
    /// As [`Outliers::inject`]. The layer is then unchanged.
    pub fn inject_layer(&self, layer: &mut Layer) -> Result<Vec<Injected>, Error> {
        if !(self.factor.is_finite() && self.factor > 0.0) {
            let value = self.factor.to_string();
            return Err(Error::BadSetting { name: "factor", value, expected: "a number above zero" });
        }
        let links = layer.links(self.site);
        if links.is_empty() {
            let value = format!("{:?}", self.site);
            return Err(Error::BadSetting { name: "site", value, expected: "a site that the family has" });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(layer.index() as u64);
        let mut changed = layer.clone();
        let mut injected = Vec::new();
        for link in links {
            let channels = draw(&mut rng, self.channels, link.channels)?;
            for end in &link.raised {
                scale(&mut changed, end, &channels, self.factor)?;
            }
            for end in &link.lowered {
                scale(&mut changed, end, &channels, 1.0 / self.factor.powi(link.power))?;
            }
            if let Some(first) = link.raised.first() {
                injected.push(Injected { name: first.name.clone(), elements: first.elements(&channels) });
            }
        }
        *layer = changed;
        Ok(injected)
    }
}

/// Distinct numbers below `of`.
fn draw(rng: &mut ChaCha8Rng, count: usize, of: usize) -> Result<Vec<usize>, Error> {
    if count == 0 || count > of {
        let value = format!("{count} of {of}");
        return Err(Error::BadSetting { name: "channels", value, expected: "from 1 to the channels there are" });
    }
    let mut all: Vec<usize> = (0..of).collect();
    for place in 0..count {
        let left = (of - place) as u64;
        #[expect(clippy::cast_possible_truncation, reason = "a remainder by a length fits a usize")]
        all.swap(place, place + (rng.next_u64() % left) as usize);
    }
    all.truncate(count);
    all.sort_unstable();
    Ok(all)
}

fn scale(layer: &mut Layer, end: &End, channels: &[usize], factor: f32) -> Result<(), Error> {
    let elements = end.elements(channels);
    if end.side == Side::Vector {
        for vector in layer.vectors_mut() {
            if vector.name() == end.name {
                let mut values = vector.values().to_vec();
                elements.iter().filter_map(|at| values.get_mut(*at).map(|v| *v *= factor)).for_each(drop);
                vector.set(values)?;
            }
        }
        return Ok(());
    }
    let slot = layer.slot_mut(&end.name)?;
    let mut weight = slot.weight()?;
    let inputs = slot.shape()[1].max(1);
    for (index, row) in weight.chunks_exact_mut(inputs).enumerate() {
        match end.side {
            Side::Output if elements.contains(&index) => row.iter_mut().for_each(|w| *w *= factor),
            Side::Input => elements.iter().for_each(|at| row[*at] *= factor),
            _ => {}
        }
    }
    slot.set_dense(weight)?;
    if let (Side::Output, Some(bias)) = (end.side, slot.bias()) {
        let scaled = |(at, b): (usize, &f32)| if elements.contains(&at) { b * factor } else { *b };
        let bias = bias.iter().enumerate().map(scaled).collect();
        slot.set_bias(bias)?;
    }
    Ok(())
}
