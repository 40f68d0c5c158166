//! Adam's steps (arXiv 1412.6980). Without weight decay AdamW is the same.

/// Decay of the mean of gradients, and of that of their squares.
const DECAY: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;

/// The state of one list of parameters.
#[derive(Clone, Debug)]
pub(super) struct Adam {
    rate: f64,
    steps: i32,
    /// Means of the gradient and of its square, by parameter.
    means: Vec<[f64; 2]>,
}

impl Adam {
    pub(super) fn new(rate: f64, parameters: usize) -> Self {
        Self { rate, steps: 0, means: vec![[0.0; 2]; parameters] }
    }

    /// Takes one step down the gradient.
    pub(super) fn step(&mut self, parameters: &mut [f64], gradient: &[f64]) {
        self.steps += 1;
        let [first, second] = DECAY.map(|decay| 1.0 - decay.powi(self.steps));
        for ((parameter, [mean, square]), g) in parameters.iter_mut().zip(&mut self.means).zip(gradient) {
            *mean += (1.0 - DECAY[0]) * (g - *mean);
            *square += (1.0 - DECAY[1]) * (g * g - *square);
            *parameter -= self.rate * (*mean / first) / ((*square / second).sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_as_long_as_the_rate_and_many_find_the_bottom() {
        let mut adam = Adam::new(0.1, 2);
        let mut x = [3.0, -2.0];
        adam.step(&mut x, &[500.0, -0.01]);
        assert!((x[0] - 2.9).abs() < 1e-6 && (x[1] + 1.9).abs() < 1e-6, "{x:?}");
        for _ in 0..2000 {
            let slopes = [2.0 * (x[0] - 1.0), 20.0 * (x[1] - 0.5)];
            adam.step(&mut x, &slopes);
        }
        assert!((x[0] - 1.0).abs() < 1e-3 && (x[1] - 0.5).abs() < 1e-3, "{x:?}");
    }
}
