//! RWKVQuant's decision: scalar or vector codes, matrix by matrix, from the weights alone (arXiv 2505.03803).

use super::methods::Refused;
use crate::Error;
use crate::recipe::{Assign, Method, RwkvQuant};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::path::Path;
use vector_quant::rwkvquant::{Choice, Policy, Uniformity, decide, incoherence, uniformity};

/// What was measured on a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proxies {
    pub(super) uniformity: Uniformity,
    incoherence: f64,
}

/// Measures how evenly the weights of a matrix are spaced.
pub(super) fn measure(file: &Path, name: &str, values: &[f32], config: &RwkvQuant) -> Result<Proxies, Error> {
    let measured = || -> Result<Proxies, vector_quant::Error> {
        let uniformity = uniformity(values, config.gaps, config.order)?;
        Ok(Proxies { uniformity, incoherence: incoherence(values)? })
    };
    measured().map_err(|source| Refused::from(source).at(file, name, &Method::Rwkvquant(Box::default())))
}

/// Decides for all matrices.
pub(super) fn assign(proxies: &[Proxies], rule: Assign) -> Result<Vec<Choice>, vector_quant::Error> {
    let uniformities: Vec<Uniformity> = proxies.iter().map(|proxies| proxies.uniformity).collect();
    let scalar = |is: bool| if is { Choice::Scalar } else { Choice::Vector };
    match rule {
        Assign::ScalarShare { share } => decide(&uniformities, Policy::ScalarShare { share }),
        Assign::Thresholds { coarse, fine } => decide(&uniformities, Policy::Thresholds { coarse, fine }),
        Assign::Incoherence { most } => Ok(proxies.iter().map(|proxies| scalar(proxies.incoherence <= most)).collect()),
        Assign::Random { share, seed } => {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            let mut order: Vec<(u64, usize)> = (0..proxies.len()).map(|at| (random.next_u64(), at)).collect();
            order.sort_unstable();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share"
            )]
            let count = (share * proxies.len() as f64).round() as usize;
            let mut choices = vec![Choice::Vector; proxies.len()];
            order.iter().take(count).for_each(|(_, at)| choices[*at] = Choice::Scalar);
            Ok(choices)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_assignment_takes_the_share_and_follows_its_seed() {
        let even = Uniformity { coarse: 0.0, fine: 0.0, gaps: 8 };
        let proxies = vec![Proxies { uniformity: even, incoherence: 5.0 }; 40];
        let drawn = |share, seed| assign(&proxies, Assign::Random { share, seed }).expect("a share");
        let scalars = |choices: &[Choice]| choices.iter().filter(|choice| **choice == Choice::Scalar).count();
        assert_eq!([0.0, 0.25, 1.0].map(|share| scalars(&drawn(share, 1))), [0, 10, 40], "shares");
        assert_eq!(drawn(0.5, 1), drawn(0.5, 1), "one seed");
        assert_ne!(drawn(0.5, 1), drawn(0.5, 2), "another seed");
    }
}
