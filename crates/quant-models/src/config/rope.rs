//! Reading the rotary position settings.

use super::json::Object;
use crate::Error;
use crate::rope::{Rope, RopeScaling};

const KINDS: &str = "one of default, linear, dynamic, llama3, yarn";

/// Positions above this are refused: no published model comes near.
const MAX_POSITIONS: usize = 1 << 28;

/// Reads `rope_theta` and `rope_scaling`, or the newer `rope_parameters` that holds both.
pub(super) fn read(config: &Object<'_>, head_dim: usize, max_positions: usize) -> Result<Rope, Error> {
    let newer = config.object("rope_parameters")?;
    let scaling = match &newer {
        Some(_) => None,
        None => config.object("rope_scaling")?,
    };
    let theta = match newer.as_ref().map(|object| object.positive("rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => config.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    if theta <= 1.0 {
        let holder = newer.as_ref().filter(|object| object.get("rope_theta").is_some()).unwrap_or(config);
        return Err(holder.bad("rope_theta", "a base above 1"));
    }
    let settings = newer.as_ref().or(scaling.as_ref());
    Ok(Rope {
        theta,
        rotary_dim: rotary_dim(config, settings, head_dim)?,
        scaling: settings.map_or(Ok(RopeScaling::Default), |object| self::scaling(object, config, max_positions))?,
    })
}

fn rotary_dim(config: &Object<'_>, settings: Option<&Object<'_>>, head_dim: usize) -> Result<usize, Error> {
    const KEY: &str = "partial_rotary_factor";
    let holder = settings.filter(|object| object.get(KEY).is_some()).unwrap_or(config);
    let Some(share) = holder.positive(KEY)? else {
        return Ok(head_dim);
    };
    #[expect(clippy::cast_precision_loss, reason = "a head has far fewer than 2^53 elements")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the share is checked right below")]
    let dim = (head_dim as f64 * share) as usize;
    if share > 1.0 || dim == 0 || !dim.is_multiple_of(2) {
        return Err(holder.bad(KEY, format!("a share of the head size {head_dim} that gives an even number")));
    }
    Ok(dim)
}

fn scaling(object: &Object<'_>, config: &Object<'_>, max_positions: usize) -> Result<RopeScaling, Error> {
    let key = if object.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = object.text(key)?;
    let factor = || object.required("factor", object.positive("factor")?);
    let original = || -> Result<Option<usize>, Error> {
        const KEY: &str = "original_max_position_embeddings";
        match object.count(KEY, MAX_POSITIONS)? {
            Some(found) => Ok(Some(found)),
            None => config.count(KEY, MAX_POSITIONS),
        }
    };
    match kind {
        // `rope_parameters` without a type is how newer files spell the plain rotation.
        None | Some("default") => Ok(RopeScaling::Default),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("dynamic") => {
            Ok(RopeScaling::Dynamic { factor: factor()?, original_positions: original()?.unwrap_or(max_positions) })
        }
        Some("llama3") => {
            let number = |key: &str| object.required(key, object.positive(key)?);
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                return Err(object.bad("high_freq_factor", format!("more than low_freq_factor, which is {low}")));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions: object.required("original_max_position_embeddings", original()?)?,
            })
        }
        Some("yarn") => {
            let original = original()?.unwrap_or(max_positions);
            #[expect(clippy::cast_precision_loss, reason = "positions are below 2^28")]
            let factor = match object.positive("factor")? {
                Some(factor) => factor,
                None => max_positions as f64 / original as f64,
            };
            let (fast, slow) =
                (object.positive("beta_fast")?.unwrap_or(32.0), object.positive("beta_slow")?.unwrap_or(1.0));
            if fast <= slow {
                return Err(object.bad("beta_fast", format!("more than beta_slow, which is {slow}")));
            }
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: fast,
                beta_slow: slow,
                original_positions: original,
                attention_factor: object.positive("attention_factor")?,
                mscale: object.positive("mscale")?,
                mscale_all_dim: object.positive("mscale_all_dim")?,
                truncate: object.flag("truncate")?.unwrap_or(true),
            })
        }
        Some(_) => Err(object.bad(key, KINDS)),
    }
}
