//! Two objectives: the least `L^r · T^(1−r)` under a budget.

use crate::{Allocation, Choice, Error, allocate};

/// One option of an item that is judged by loss and time.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct TimedChoice {
    /// What it takes of the budget.
    pub cost: u64,
    /// What it loses; finite and not negative.
    pub loss: f64,
    /// How long it takes; finite and not negative.
    pub time: f64,
}

/// The option taken of every item, judged by loss and time.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct ProductAllocation {
    /// Index of the option of each item.
    pub choices: Vec<usize>,
    /// Sum of costs.
    pub cost: u64,
    /// Sum of losses `L`.
    pub loss: f64,
    /// Sum of times `T`.
    pub time: f64,
    /// `L^r · T^(1−r)`.
    pub objective: f64,
}

/// Differences below this part of a chord's value are rounding.
const ROUNDING: f64 = 1e-12;

/// Takes one option of every item so that the costs fit the budget and `L^r · T^(1−r)` is least, `L` the sum of losses
/// and `T` the sum of times.
///
/// This is the program of MxMoE (arXiv 2505.05799, section 3) for one layer and one set of tiles; the paper hands its
/// logarithm to a general solver. The product is concave where both factors are positive, so over the convex hull of
/// all attainable (L, T) it is least at a corner, and every corner minimises `L/a + T/b` for some `a, b`: [`allocate`]
/// finds it. The hull is walked from its ends, pure loss and pure time: the slope of the chord of two known corners
/// either shows a new corner below it, or that there is none between them. Between two corners everything lies in the
/// triangle of their chord and the lines that support them; stretches whose triangle holds no better product than a known
/// corner's are left out.
///
/// With `r = 1` times are not looked at, with `r = 0` losses are not. Of equal products the one with less time, then
/// less loss, is taken; a loss of zero makes the product zero whatever the time.
///
/// # Errors
///
/// [`Error::Exponent`], [`Error::Time`], and the errors of [`allocate`].
///
/// # Examples
///
/// ```
/// use bit_allocation::{TimedChoice, allocate_product};
/// let slow = TimedChoice { cost: 8, loss: 1.0, time: 10.0 };
/// let fast = TimedChoice { cost: 4, loss: 2.0, time: 3.0 };
/// let items = [vec![slow, fast], vec![slow, fast]];
/// assert_eq!(allocate_product(&items, 16, 1.0)?.choices, [0, 0], "loss alone");
/// assert_eq!(allocate_product(&items, 16, 0.5)?.choices, [1, 1], "4 · 6 is less than 2 · 20 and 3 · 13");
/// # Ok::<(), bit_allocation::Error>(())
/// ```
pub fn allocate_product(items: &[Vec<TimedChoice>], budget: u64, r: f64) -> Result<ProductAllocation, Error> {
    if !(0.0..=1.0).contains(&r) {
        return Err(Error::Exponent { exponent: r });
    }
    check(items)?;
    let mut walk = Walk { items, budget, r, best: None };
    // An exponent of 0 leaves its factor out, so the other one alone decides.
    if r == 1.0 || r == 0.0 {
        walk.corner(r, 1.0 - r)?;
    } else {
        let slow = walk.corner(1.0, 0.0)?;
        let fast = walk.corner(0.0, 1.0)?;
        walk.between(slow, fast)?;
    }
    walk.best.ok_or(Error::LossOverflow)
}

fn check(items: &[Vec<TimedChoice>]) -> Result<(), Error> {
    let mut total = 0.0;
    for (item, options) in items.iter().enumerate() {
        let mut most = 0.0_f64;
        for (option, choice) in options.iter().enumerate() {
            if !choice.loss.is_finite() || choice.loss < 0.0 {
                return Err(Error::Loss { item, option, loss: choice.loss });
            }
            if !choice.time.is_finite() || choice.time < 0.0 {
                return Err(Error::Time { item, option, time: choice.time });
            }
            most = most.max(choice.loss).max(choice.time);
        }
        total += most;
    }
    if f64::is_finite(total) { Ok(()) } else { Err(Error::LossOverflow) }
}

/// A corner and the line that supports the hull there: all attainable pairs have `weights · (L, T)` of at least `value`.
#[derive(Clone, Copy)]
struct Corner {
    loss: f64,
    time: f64,
    weights: (f64, f64),
    value: f64,
}

struct Walk<'a> {
    items: &'a [Vec<TimedChoice>],
    budget: u64,
    r: f64,
    best: Option<ProductAllocation>,
}

impl Walk<'_> {
    /// The corner that minimises `loss_weight · L + time_weight · T`.
    fn corner(&mut self, loss_weight: f64, time_weight: f64) -> Result<Corner, Error> {
        let choice = |c: &TimedChoice| Choice { cost: c.cost, loss: loss_weight * c.loss + time_weight * c.time };
        let weighed: Vec<Vec<Choice>> = self.items.iter().map(|item| item.iter().map(choice).collect()).collect();
        let Allocation { choices, cost, .. } = allocate(&weighed, self.budget)?;
        let taken = || self.items.iter().zip(&choices).map(|(item, &choice)| item[choice]);
        let (loss, time) = (taken().map(|c| c.loss).sum(), taken().map(|c| c.time).sum());
        let found = ProductAllocation { objective: self.product(loss, time), choices, cost, loss, time };
        let rank = |a: &ProductAllocation| [a.objective, a.time, a.loss];
        if self.best.as_ref().is_none_or(|best| rank(&found) < rank(best)) {
            self.best = Some(found);
        }
        let value = loss_weight * loss + time_weight * time;
        Ok(Corner { loss, time, weights: (loss_weight, time_weight), value })
    }

    fn product(&self, loss: f64, time: f64) -> f64 {
        loss.powf(self.r) * time.powf(1.0 - self.r)
    }

    /// Visits the corners between two, of which `left` loses less and `right` is faster.
    fn between(&mut self, left: Corner, right: Corner) -> Result<(), Error> {
        let (width, height) = (right.loss - left.loss, left.time - right.time);
        if !(width > 0.0 && height > 0.0) || self.hopeless(left, right) {
            return Ok(());
        }
        let value = |corner: Corner| corner.loss / width + corner.time / height;
        let chord = value(left).min(value(right));
        let middle = self.corner(1.0 / width, 1.0 / height)?;
        if middle.value < chord - ROUNDING * chord {
            self.between(left, middle)?;
            self.between(middle, right)?;
        }
        Ok(())
    }

    /// Whether no pair between two corners can beat the best one known.
    ///
    /// All of them lie in the triangle of the corners and the point where their lines cross, and a concave product is least
    /// at one of its three points.
    fn hopeless(&self, left: Corner, right: Corner) -> bool {
        let (a, b) = (left.weights, right.weights);
        let determinant = a.0 * b.1 - a.1 * b.0;
        let crossing = if determinant > 0.0 {
            ((left.value * b.1 - right.value * a.1) / determinant, (right.value * a.0 - left.value * b.0) / determinant)
        } else {
            (left.loss, right.time)
        };
        // Lines that are nearly parallel cross anywhere; the corners' box bounds what rounding may do.
        let (loss, time) = (crossing.0.clamp(left.loss, right.loss), crossing.1.clamp(right.time, left.time));
        self.best.as_ref().is_some_and(|best| self.product(loss, time) >= best.objective * (1.0 - ROUNDING))
    }
}
