//! Two objectives: the least `L^r · T^(1−r)` under a budget.

use crate::knapsack::{Relaxation, improve, relax};
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
/// logarithm to a general solver. The product is concave where both factors are positive. Every choice of weights
/// `a, b ≥ 0` gives a line that all attainable pairs lie above, `a·L + b·T ≥ v` with the least such sum `v`, so the
/// product is nowhere less than at the least corner of the polygon that lines enclose. Lines are added where that
/// corner is, until it is no better than the best allocation found: first with the `v` of the linear relaxation,
/// which costs a sort, and where that cuts nothing off, with the true one, for which [`allocate`] does its search.
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
    let mut search = Search { items, budget, r, known: Vec::new(), best: 0 };
    // An exponent of 0 leaves its factor out, so the other one alone decides.
    if r == 1.0 || r == 0.0 {
        let choices = allocate(&search.weighed((r, 1.0 - r)), budget)?.choices;
        search.keep(choices);
    } else {
        search.run()?;
    }
    search.known.into_iter().nth(search.best).ok_or(Error::LossOverflow)
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

/// All attainable pairs have `weights · (L, T) ≥ value`.
#[derive(Clone, Copy)]
struct Line {
    weights: (f64, f64),
    value: f64,
    /// Where the relaxation touches the line of its own that has these weights.
    relaxed: (f64, f64),
    /// The allocation on the line, if it is known to be the best for these weights.
    exact: Option<(f64, f64)>,
}

impl Line {
    fn at(&self, (loss, time): (f64, f64)) -> f64 {
        self.weights.0 * loss + self.weights.1 * time
    }

    /// Where two lines of different directions cross.
    fn crossing(&self, other: &Self) -> (f64, f64) {
        let (a, b) = (self.weights, other.weights);
        let determinant = a.0 * b.1 - a.1 * b.0;
        let loss = (self.value * b.1 - other.value * a.1) / determinant;
        let time = (other.value * a.0 - self.value * b.0) / determinant;
        (loss.max(0.0), time.max(0.0))
    }

    /// The crossing with the next line. Where an allocation is known to lie on a line, the crossing lies on its side; lines
    /// that are nearly parallel cross anywhere else by rounding.
    fn corner(&self, next: &Self) -> (f64, f64) {
        let (mut loss, mut time) = self.crossing(next);
        if let Some(left) = self.exact {
            (loss, time) = (loss.max(left.0), time.min(left.1));
        }
        if let Some(right) = next.exact {
            (loss, time) = (loss.min(right.0), time.max(right.1));
        }
        (loss, time)
    }

    /// Whether its direction comes before another's, from loss alone to time alone.
    fn before(&self, other: &Self) -> bool {
        self.weights.0 * other.weights.1 > self.weights.1 * other.weights.0
    }
}

struct Search<'a> {
    items: &'a [Vec<TimedChoice>],
    budget: u64,
    r: f64,
    /// Allocations that fit.
    known: Vec<ProductAllocation>,
    /// Index of the best of them.
    best: usize,
}

impl Search<'_> {
    fn run(&mut self) -> Result<(), Error> {
        let mut lines = vec![self.relaxed((1.0, 0.0))?, self.relaxed((0.0, 1.0))?];
        while let Some(at) = self.open(&lines) {
            let (left, right) = (lines[at], lines[at + 1]);
            if let (Some(a), Some(b)) = (left.exact, right.exact) {
                let line = chord(a, b).map(|weights| self.exact(weights)).transpose()?;
                match line.filter(|line| line.at(left.crossing(&right)) < line.value) {
                    Some(line) => insert(&mut lines, line),
                    // The least corner is an allocation, but for rounding.
                    None => return Ok(()),
                }
                continue;
            }
            if let Some(weights) = chord(left.relaxed, right.relaxed) {
                let line = self.relaxed(weights)?;
                if line.value - line.at(left.crossing(&right)) > ROUNDING * line.value {
                    insert(&mut lines, line);
                    continue;
                }
            }
            let upgraded = if left.exact.is_none() { left } else { right };
            insert(&mut lines, self.exact(upgraded.weights)?);
        }
        Ok(())
    }

    /// The first of the two lines that cross where the product is least, unless it is no less than the best one known.
    fn open(&self, lines: &[Line]) -> Option<usize> {
        let bound = |pair: &[Line]| {
            let (loss, time) = pair[0].corner(&pair[1]);
            self.product(loss, time)
        };
        let least = lines.windows(2).map(bound).enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        let best = self.known.get(self.best).map_or(f64::INFINITY, |best| best.objective);
        least.filter(|(_, bound)| *bound < best * (1.0 - ROUNDING)).map(|(at, _)| at)
    }

    fn weighed(&self, weights: (f64, f64)) -> Vec<Vec<Choice>> {
        let choice = |c: &TimedChoice| Choice { cost: c.cost, loss: weights.0 * c.loss + weights.1 * c.time };
        self.items.iter().map(|item| item.iter().map(choice).collect()).collect()
    }

    /// The line of the linear relaxation.
    fn relaxed(&mut self, weights: (f64, f64)) -> Result<Line, Error> {
        let Relaxation { bound, choices, whole, part } = relax(&self.weighed(weights), self.budget)?;
        self.keep(choices);
        let (mut loss, mut time) = self.sums(&whole);
        if let Some((item, to, part)) = part {
            let (from, to) = (self.items[item][whole[item]], self.items[item][to]);
            loss += part * (to.loss - from.loss);
            time += part * (to.time - from.time);
        }
        Ok(Line { weights, value: bound.max(0.0), relaxed: (loss, time), exact: None })
    }

    /// The line of the best allocation.
    fn exact(&mut self, weights: (f64, f64)) -> Result<Line, Error> {
        let line = self.relaxed(weights)?;
        let value = |known: &&ProductAllocation| line.at((known.loss, known.time));
        let known = self.known.iter().min_by(|a, b| value(a).total_cmp(&value(b)));
        let known = known.map_or_else(Vec::new, |known| known.choices.clone());
        let Allocation { choices, .. } = improve(&self.weighed(weights), self.budget, &known)?;
        let sums = self.sums(&choices);
        self.keep(choices);
        Ok(Line { value: line.at(sums), exact: Some(sums), ..line })
    }

    fn sums(&self, choices: &[usize]) -> (f64, f64) {
        let taken = || self.items.iter().zip(choices).map(|(item, &choice)| item[choice]);
        (taken().map(|c| c.loss).sum(), taken().map(|c| c.time).sum())
    }

    /// Remembers an allocation that fits.
    fn keep(&mut self, choices: Vec<usize>) {
        let cost = self.items.iter().zip(&choices).map(|(item, &choice)| item[choice].cost).sum();
        let (loss, time) = self.sums(&choices);
        let found = ProductAllocation { objective: self.product(loss, time), choices, cost, loss, time };
        let rank = |a: &ProductAllocation| [a.objective, a.time, a.loss];
        if self.known.get(self.best).is_some_and(|best| rank(&found) < rank(best)) {
            self.best = self.known.len();
        }
        self.known.push(found);
    }

    fn product(&self, loss: f64, time: f64) -> f64 {
        loss.powf(self.r) * time.powf(1.0 - self.r)
    }
}

/// Weights of which both points have the same sum; none if the second does not lose more and take less time.
fn chord(left: (f64, f64), right: (f64, f64)) -> Option<(f64, f64)> {
    let (width, height) = (right.0 - left.0, left.1 - right.1);
    let apart = width > ROUNDING * right.0 && height > ROUNDING * left.1;
    apart.then(|| (1.0 / width, 1.0 / height))
}

/// Adds a line in the order of directions, in the place of one with the same weights, and drops those that enclose nothing.
fn insert(lines: &mut Vec<Line>, line: Line) {
    let at = lines.partition_point(|other| other.before(&line));
    match lines.get_mut(at) {
        Some(same) if !line.before(same) => *same = line,
        _ => lines.insert(at, line),
    }
    let mut kept: Vec<Line> = Vec::with_capacity(lines.len());
    for line in lines.drain(..) {
        // A line is of no use if its neighbours already cross above it.
        while let [.., before, middle] = kept[..] {
            let crossing = before.crossing(&line);
            if middle.at(crossing) < middle.value {
                break;
            }
            kept.pop();
        }
        kept.push(line);
    }
    *lines = kept;
}
