//! Cross-block reconstruction of WKVQuant (arXiv 2402.12065): what a block's weights and its cache are rounded with,
//! learned on the outputs of blocks behind it.
//!
//! | step | here |
//! |---|---|
//! | weights clipped and rounded, γ and β of each group | `clip.rs` |
//! | keys and values through two-dimensional quantization, attention over the past only | `past.rs`, `../layer/past.rs` |
//! | the loss over several blocks, its gradient, the best parameters seen | this file |
//! | AdamW | `adam.rs` |
//! | settings, mean absolute error or mean square | `settings.rs` |

mod adam;
mod clip;
mod past;
mod settings;

pub use past::{PastRounding, StreamRounding};
pub use settings::{Loss, Reconstruction};

use crate::layer::graph::{Frame, Tap, Traced};
use crate::ops;
use crate::{Error, Layer, Stream};
use adam::Adam;
use candle_core::{Device, Tensor, Var};
use clip::Clip;
use past::Smoothing;
use quant_core::Format;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;

fn frame(layer: &Layer, tokens: usize) -> Result<Frame<'_>, Error> {
    let mut frame = Frame::new(layer.config(), tokens, 1)?;
    frame.layer = layer.index();
    Ok(frame)
}

fn trace(layer: &Layer, x: &Tensor, frame: &Frame<'_>) -> Result<Traced, Error> {
    layer.trace(x, None, frame)?.ok_or_else(|| Error::NotDifferentiable { family: layer.config().family })
}

/// The rows of each text, `[tokens, hidden]`.
fn texts(layer: &Layer, streams: &[Stream]) -> Result<Vec<Tensor>, Error> {
    let expected = layer.config().hidden_size;
    let mut texts = Vec::new();
    for stream in streams {
        if stream.width() != expected {
            let (expected, found) = (vec![stream.tokens(), expected], vec![stream.tokens(), stream.width()]);
            return Err(Error::WeightShape { name: "hidden states".into(), expected, found });
        }
        for rows in stream.texts() {
            texts.push(stream.rows().part(rows)?.tensor().clone());
        }
    }
    Ok(texts)
}

/// A block with rounded weights, and what they and its cache are rounded with.
///
/// # Examples
///
/// ```
/// use quant_models::{Apply, Config, Layers, PastRounding, Reconstruction, RoundedBlock, StreamRounding};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
/// let checkpoint = quant_io::Checkpoint::open(&folder)?;
/// let layers = Layers::new(Config::from_folder(&folder)?, &checkpoint, Apply::Decoded);
/// let text: Vec<u32> = b"The first block in three bits, judged by what the second one makes of it.".map(u32::from).into();
/// let inputs = layers.embedding()?.stream(&[&text])?;
/// let (first, second) = (layers.layer(0)?, layers.layer(1)?);
/// let targets = second.forward(&first.forward(&inputs, None)?, None)?;
///
/// let three_bits: quant_core::Format = "int3-g64-asym".parse()?;
/// let formats: Vec<_> = first.slots().iter().map(|slot| (slot.name().to_owned(), three_bits)).collect();
/// let channels = layers.config().kv_geometry().key_width();
/// let (shift, scale) = (vec![0.0; channels], vec![1.0; channels]);
/// let stream = StreamRounding { format: "int4-min".parse()?, shift, scale };
/// let past = PastRounding { keys: stream.clone(), values: stream, sinks: 0, window: 0 };
/// let mut block = RoundedBlock::new(&first, &formats)?.with_past(past)?;
/// let settings = Reconstruction { blocks: 2, epochs: 3, ..Reconstruction::default() };
/// let found = block.reconstruct(&[second], &[inputs], &[targets], &settings)?;
/// assert!(found.after <= found.before);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RoundedBlock {
    /// With rounded weights.
    layer: Layer,
    clips: Vec<Clip>,
    past: Option<PastRounding>,
}

/// What learning did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Reconstructed {
    /// Loss over all texts at the start.
    pub before: f64,
    /// Loss at the parameters that were kept, the best after any pass, or those of the start.
    pub after: f64,
    /// Loss after each pass.
    pub epochs: Vec<f64>,
}

/// Gradients that come back through the graph.
struct Flows {
    /// Of rounded weights, by the names of their linears.
    weights: BTreeMap<String, Tensor>,
    /// Of the shifts and scales of keys and values.
    past: Option<[Vec<f32>; 4]>,
}

/// Gradients of β and γ of each weight, and of the shifts and scales of keys and values.
struct Gradients {
    clips: Vec<[Vec<f64>; 2]>,
    past: Option<[Vec<f32>; 4]>,
}

impl RoundedBlock {
    /// Rounds the linears of a layer that are named, each group clipped to 0.982 of its range, where learning starts. Linears
    /// that are not named stay as they are.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSlot`], [`Error::BadSetting`] for formats whose clips cannot be learned, see
    /// [`RoundedBlock::check_format`], [`Error::Linear`] for what the format refuses.
    pub fn new(layer: &Layer, formats: &[(String, Format)]) -> Result<Self, Error> {
        let clip = |(name, format): &(String, Format)| {
            let slot = layer.slot(name)?;
            Clip::new(name, *format, slot.shape(), slot.weight()?)
        };
        let clips = formats.iter().map(clip).collect::<Result<_, Error>>()?;
        let mut block = Self { layer: layer.clone(), clips, past: None };
        block.round()?;
        Ok(block)
    }

    /// Refuses formats whose clips cannot be learned: other than asymmetric integers with a range for a row or a group.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`].
    pub fn check_format(format: Format) -> Result<(), Error> {
        clip::check(format)
    }

    /// The block with a cache; without one, earlier tokens are read as they were.
    ///
    /// # Errors
    ///
    /// [`Error::WeightShape`], [`Error::NonFiniteWeight`] and [`Error::BadSetting`] for parameters that are not the layer's.
    pub fn with_past(self, past: PastRounding) -> Result<Self, Error> {
        past.check(&self.layer)?;
        Ok(Self { past: Some(past), ..self })
    }

    /// The layer with rounded weights.
    #[must_use]
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// What the cache rounds with.
    #[must_use]
    pub fn past(&self) -> Option<&PastRounding> {
        self.past.as_ref()
    }

    /// The clipped weight of a linear, row-major `[out, in]`: encoded in its format it is the weight of
    /// [`RoundedBlock::layer`]. `None` for linears that are not rounded.
    #[must_use]
    pub fn clipped(&self, name: &str) -> Option<Vec<f32>> {
        self.clips.iter().find(|clip| clip.name == name).map(Clip::clipped)
    }

    /// Learns clips, shifts and scales: makes the mean error small of `F_{i+k−1} ∘ … ∘ F_{i+1}(B_i(X))` from `targets`.
    ///
    /// `inputs` are what enters the block, and `targets` what the last block of `following` is to give, text by text. Blocks
    /// behind this one stay as they are; [`Reconstruction::blocks`] is not looked at but for being valid, their number is that of
    /// `following`. A step of AdamW follows each text. Rounding passes gradients straight through. The loss over all texts is
    /// formed before the first pass and after each; the parameters of the least are kept.
    ///
    /// # Errors
    ///
    /// [`Error::BadSetting`] for settings; [`Error::TooFewTokens`] when there is no text; [`Error::WeightShape`] when inputs and
    /// targets are not the same texts; [`Error::NotDifferentiable`] for other than dense transformers;
    /// [`Error::NonFiniteLoss`].
    pub fn reconstruct(
        &mut self,
        following: &[Layer],
        inputs: &[Stream],
        targets: &[Stream],
        settings: &Reconstruction,
    ) -> Result<Reconstructed, Error> {
        settings.validate()?;
        let (inputs, targets) = (texts(&self.layer, inputs)?, texts(&self.layer, targets)?);
        let shapes = |texts: &[Tensor]| texts.iter().map(|text| text.dims().iter().product()).collect::<Vec<usize>>();
        if shapes(&inputs) != shapes(&targets) {
            let (expected, found) = (shapes(&inputs), shapes(&targets));
            return Err(Error::WeightShape { name: "targets of reconstruction".into(), expected, found });
        }
        let texts: Vec<(Tensor, Tensor)> = inputs.into_iter().zip(targets).collect();
        if texts.is_empty() {
            return Err(Error::TooFewTokens { found: 0, needed: 1 });
        }
        let before = self.mean_loss(following, &texts, settings.loss)?;
        if !before.is_finite() {
            return Err(Error::NonFiniteLoss { layer: self.layer.index() });
        }
        let mut report = Reconstructed { before, after: before, epochs: Vec::new() };
        let mut best = (self.clips.clone(), self.past.clone());
        let adam = |clip: &Clip| [(); 2].map(|()| Adam::new(settings.clip_rate, clip.lower.len()));
        let mut clip_steps: Vec<[Adam; 2]> = self.clips.iter().map(adam).collect();
        let mut smoothing = self.past.as_ref().map(|past| Smoothing::new(past, settings.smoothing_rate));
        let mut order: Vec<usize> = (0..texts.len()).collect();
        let mut draw = ChaCha8Rng::seed_from_u64(settings.seed);
        for _ in 0..settings.epochs {
            shuffle(&mut order, &mut draw);
            for &text in &order {
                let (x, target) = &texts[text];
                let gradients = self.gradients(following, x, target, settings.loss)?;
                for ((clip, [lower, upper]), [of_lower, of_upper]) in
                    self.clips.iter_mut().zip(&mut clip_steps).zip(&gradients.clips)
                {
                    lower.step(&mut clip.lower, of_lower);
                    upper.step(&mut clip.upper, of_upper);
                }
                if let (Some(smoothing), Some(gradients)) = (&mut smoothing, &gradients.past) {
                    smoothing.step(gradients);
                    self.past = Some(smoothing.parameters());
                }
                self.round()?;
            }
            let now = self.mean_loss(following, &texts, settings.loss)?;
            report.epochs.push(now);
            if now < report.after {
                report.after = now;
                best = (self.clips.clone(), self.past.clone());
            }
        }
        (self.clips, self.past) = best;
        self.round()?;
        Ok(report)
    }

    /// Puts rounded weights in their places.
    fn round(&mut self) -> Result<(), Error> {
        for clip in &self.clips {
            self.layer.slot_mut(&clip.name)?.set_dense(clip.rounded()?)?;
        }
        Ok(())
    }

    /// The output of the last of the following blocks.
    fn outputs(
        &self,
        following: &[Layer],
        x: &Tensor,
        parameters: Option<&[Tensor; 4]>,
        tap: Option<&Arc<Tap>>,
    ) -> Result<Tensor, Error> {
        let tokens = x.dim(0)?;
        let mut frame_of_block = match (&self.past, parameters) {
            (Some(past), Some(parameters)) => past.frame(&self.layer, tokens, parameters)?,
            _ => frame(&self.layer, tokens)?,
        };
        frame_of_block.tap = tap.cloned();
        let mut out = trace(&self.layer, x, &frame_of_block)?.out;
        for layer in following {
            out = trace(layer, &out, &frame(layer, tokens)?)?.out;
        }
        Ok(out.contiguous()?)
    }

    /// The mean of the losses of all texts, each counting by its tokens.
    #[expect(clippy::cast_precision_loss, reason = "tokens of a text")]
    fn mean_loss(&self, following: &[Layer], texts: &[(Tensor, Tensor)], loss: Loss) -> Result<f64, Error> {
        let parameters = self.past.as_ref().map(PastRounding::tensors).transpose()?;
        let (mut sum, mut tokens) = (0.0, 0.0);
        for (x, target) in texts {
            let out = self.outputs(following, x, parameters.as_ref(), None)?;
            let (value, _) = ops::read(&out, |out| ops::read(target, |target| loss.of(out, target)))??;
            let count = x.dim(0)? as f64;
            sum += value * count;
            tokens += count;
        }
        Ok(sum / tokens)
    }

    /// Gradients of one text's loss: of the rounded weights by name, and of what the cache rounds with.
    fn flows(&self, following: &[Layer], x: &Tensor, target: &Tensor, loss: Loss) -> Result<Flows, Error> {
        let names = self.clips.iter().map(|clip| clip.name.clone()).collect();
        let tap = Tap::new(&names);
        // Gradients of weights pass by only where their inputs have one.
        let input = Var::from_tensor(x)?;
        let parameters = match &self.past {
            None => None,
            Some(past) => {
                let [a, b, c, d] = past.tensors()?;
                Some([Var::from_tensor(&a)?, Var::from_tensor(&b)?, Var::from_tensor(&c)?, Var::from_tensor(&d)?])
            }
        };
        let tensors = parameters.as_ref().map(|vars| vars.each_ref().map(|var| var.as_tensor().clone()));
        let out = self.outputs(following, input.as_tensor(), tensors.as_ref(), Some(&tap))?;
        let (_, slopes) = ops::read(&out, |out| ops::read(target, |target| loss.of(out, target)))??;
        let slopes = Tensor::from_vec(slopes, out.shape(), &Device::Cpu)?;
        let found = (out * slopes)?.sum_all()?.backward()?;
        let past = match &parameters {
            None => None,
            Some(vars) => {
                let of = |var: &Var| -> Result<Vec<f32>, Error> {
                    match found.get(var) {
                        Some(gradient) => Ok(gradient.flatten_all()?.to_vec1()?),
                        None => Ok(vec![0.0; var.elem_count()]),
                    }
                };
                Some([of(&vars[0])?, of(&vars[1])?, of(&vars[2])?, of(&vars[3])?])
            }
        };
        Ok(Flows { weights: tap.take(), past })
    }

    fn gradients(&self, following: &[Layer], x: &Tensor, target: &Tensor, loss: Loss) -> Result<Gradients, Error> {
        let Flows { weights, past } = self.flows(following, x, target, loss)?;
        let clip = |clip: &Clip| -> Result<[Vec<f64>; 2], Error> {
            let Some(flow) = weights.get(&clip.name) else {
                return Ok([vec![0.0; clip.lower.len()], vec![0.0; clip.upper.len()]]);
            };
            let rounded = self.layer.slot(&clip.name)?.weight()?;
            ops::read(&flow.contiguous()?, |flow| clip.gradient(&rounded, flow))
        };
        Ok(Gradients { clips: self.clips.iter().map(clip).collect::<Result<_, Error>>()?, past })
    }
}

/// Fisher and Yates.
fn shuffle(order: &mut [usize], draw: &mut ChaCha8Rng) {
    for last in (1..order.len()).rev() {
        // The bias of the remainder is far below 2^-32 for any number of texts.
        let other = draw.next_u64() % (last as u64 + 1);
        order.swap(last, usize::try_from(other).unwrap_or(last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Apply, Config, Layers};

    /// The second layer of a small model in 4 bits with a cache of 2, the layer behind it, what enters, and a target.
    fn sample(sinks: usize) -> (RoundedBlock, Vec<Layer>, Tensor, Tensor) {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny-llama");
        let checkpoint = quant_io::Checkpoint::open(&folder).unwrap();
        let layers = Layers::new(Config::from_folder(&folder).unwrap(), &checkpoint, Apply::Decoded);
        let text: Vec<u32> = b"It was the best of times".map(u32::from).into();
        let begin = layers.embedding().unwrap().stream(&[&text]).unwrap();
        let [first, second, third] = [0, 1, 2].map(|index| layers.layer(index).unwrap());
        let inputs = first.forward(&begin, None).unwrap();
        let target = third.forward(&second.forward(&inputs, None).unwrap(), None).unwrap();
        let formats: Vec<(String, Format)> =
            second.slots().iter().map(|slot| (slot.name().to_owned(), Format::INT4_G128_ASYM)).collect();
        let channels = layers.config().kv_geometry().key_width();
        let stream = StreamRounding {
            format: "int2-min".parse().unwrap(),
            shift: (0..channels).map(|c| (c as f32).sin() * 0.1).collect(),
            scale: (0..channels).map(|c| 1.0 + (c as f32).cos() * 0.3).collect(),
        };
        let past = PastRounding { keys: stream.clone(), values: stream, sinks, window: 1 };
        let block = RoundedBlock::new(&second, &formats).unwrap().with_past(past).unwrap();
        (block, vec![third], inputs.rows().tensor().clone(), target.rows().tensor().clone())
    }

    #[test]
    fn gradients_of_rounded_weights_through_the_cache_and_the_next_block_are_slopes_of_the_loss() {
        let (block, following, x, target) = sample(2);
        let Flows { weights: flows, .. } = block.flows(&following, &x, &target, Loss::Mse).unwrap();
        // Weights that keys and values do not depend on: codes of the cache stay what they are.
        for part in ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"] {
            let name = format!("model.layers.1.{part}");
            let flow: Vec<f32> = flows[&name].flatten_all().unwrap().to_vec1().unwrap();
            let mut order: Vec<usize> = (0..flow.len()).collect();
            order.sort_by(|a, b| flow[*b].abs().total_cmp(&flow[*a].abs()));
            for &at in &order[..5] {
                let nudged = |by: f32| {
                    let mut block = block.clone();
                    let slot = block.layer.slot_mut(&name).unwrap();
                    let mut weight = slot.weight().unwrap();
                    weight[at] += by;
                    slot.set_dense(weight).unwrap();
                    block.mean_loss(&following, &[(x.clone(), target.clone())], Loss::Mse).unwrap()
                };
                let expected = (nudged(4e-3) - nudged(-4e-3)) / 8e-3;
                let off = (f64::from(flow[at]) - expected).abs();
                assert!(off < 0.02 * expected.abs(), "{name} {at}: {} beside {expected}", flow[at]);
            }
        }
    }

    #[test]
    fn gradients_through_a_cache_in_which_all_rows_are_exact_are_those_without_one() {
        let (block, following, x, target) = sample(1000);
        let Flows { weights: with, past } = block.flows(&following, &x, &target, Loss::Mse).unwrap();
        assert!(past.unwrap().iter().flatten().all(|g| *g == 0.0), "nothing is rounded");
        let without = RoundedBlock { past: None, ..block };
        let without = without.flows(&following, &x, &target, Loss::Mse).unwrap().weights;
        assert_eq!(with.len(), 7);
        for (name, flow) in &with {
            let [a, b] = [flow, &without[name]].map(|flow| flow.flatten_all().unwrap().to_vec1::<f32>().unwrap());
            let largest = b.iter().fold(0.0_f32, |most, g| most.max(g.abs()));
            assert!(largest > 0.0 && a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4 * largest), "{name}");
        }
    }

    #[test]
    fn steps_against_the_gradient_of_shifts_and_scales_lower_the_loss() {
        // Straight through, a gradient is no slope; over a step that changes many codes it has to point downwards.
        let (mut block, following, x, target) = sample(2);
        let texts = [(x.clone(), target.clone())];
        let before = block.mean_loss(&following, &texts, Loss::Mse).unwrap();
        let start = block.past.clone().unwrap();
        let mut smoothing = Smoothing::new(&start, 5e-3);
        for _ in 0..20 {
            let past = block.flows(&following, &x, &target, Loss::Mse).unwrap().past;
            smoothing.step(&past.unwrap());
            block.past = Some(smoothing.parameters());
        }
        let after = block.mean_loss(&following, &texts, Loss::Mse).unwrap();
        assert!(after < 0.95 * before, "{before} became {after}");
    }
}
