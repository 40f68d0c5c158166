//! The multiple-choice knapsack, solved exactly.
//!
//! 1. Options that cost no less and lose no less than another of their item are dropped; each item's least cost is
//!    paid in advance, and costs are counted in their greatest common divisor.
//! 2. The linear relaxation (take fractions of options) is solved by sorting the steps of all convex hulls by gain per
//!    cost. Its price λ of one unit of cost gives a bound: any allocation loses at least `Σ min_j (loss + λ·cost) −
//!    λ·budget`, and an option that is not the minimum of its item raises this by its *excess*.
//! 3. The relaxation rounded down is a first allocation. Options whose excess alone makes them worse than it are
//!    dropped, which leaves a small core. Where all steps cost the same, the relaxation is whole and nothing is left to
//!    do: this is the allocation by sorting.
//! 4. Dynamic programming over the core: the list of all sums of (cost, loss) that no other sum beats in both, item by
//!    item, without those whose bound says that they cannot win. First passes look at few items or keep few sums and only
//!    look for a better allocation, so that the last, complete pass can drop more.

use crate::Error;

/// One option of an item.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Choice {
    /// What it takes of the budget: bytes, or any other whole unit.
    pub cost: u64,
    /// What it loses; finite, not negative, and added up over items.
    pub loss: f64,
}

/// The option taken of every item.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Allocation {
    /// Index of the option of each item.
    pub choices: Vec<usize>,
    /// Sum of costs.
    pub cost: u64,
    /// Sum of losses.
    pub loss: f64,
}

impl Allocation {
    fn of(items: &[Vec<Choice>], choices: Vec<usize>) -> Self {
        let taken = || items.iter().zip(&choices).map(|(item, &choice)| item[choice]);
        let (cost, loss) = (taken().map(|c| c.cost).sum(), taken().map(|c| c.loss).sum());
        Self { choices, cost, loss }
    }
}

/// Partial allocations in all lists of the complete pass, at most.
const MOST_STATES: usize = 1 << 26;
/// Partial allocations in a list of the first passes.
const FEW_STATES: usize = 1 << 10;
/// Items whose alternatives are looked at in the first pass.
const FEW_ITEMS: usize = 64;
/// Relative size of differences in loss that f64 sums cannot tell from rounding.
const ROUNDING: f64 = 1e-12;

/// Takes one option of every item so that the costs fit the budget and the sum of losses is least.
///
/// The sum is the least there is, to within f64 rounding (10⁻¹² of the sum of the largest losses); of allocations
/// with the same loss a cheap one is preferred. No items give an empty allocation.
///
/// The problem is NP-hard, yet thousands of items with ten options and costs of any size take well under a second
/// unless losses follow costs in a contrived way.
///
/// # Errors
///
/// [`Error::Infeasible`] with the least budget that would do, [`Error::NoOptions`], [`Error::Loss`],
/// [`Error::CostOverflow`], [`Error::LossOverflow`], and [`Error::TooHard`] rather than an answer that is not the best.
///
/// # Examples
///
/// ```
/// use bit_allocation::{Choice, Error, allocate};
/// let item = [Choice { cost: 10, loss: 3.0 }, Choice { cost: 30, loss: 1.0 }];
/// let items = vec![item.to_vec(); 2];
/// assert_eq!(allocate(&items, 40)?.loss, 4.0);
/// assert_eq!(allocate(&items, 19), Err(Error::Infeasible { smallest: 20, budget: 19 }));
/// # Ok::<(), Error>(())
/// ```
pub fn allocate(items: &[Vec<Choice>], budget: u64) -> Result<Allocation, Error> {
    check(items)?;
    let problem = Problem::new(items, budget)?;
    let taken = problem.solve(None)?;
    Ok(Allocation::of(items, problem.choices(&taken)))
}

/// As [`allocate`], for those who know an allocation that fits: the closer it is to the best, the less is left to do.
pub(crate) fn improve(items: &[Vec<Choice>], budget: u64, known: &[usize]) -> Result<Allocation, Error> {
    check(items)?;
    let problem = Problem::new(items, budget)?;
    let taken = problem.solve(Some(problem.positions(items, known)))?;
    Ok(Allocation::of(items, problem.choices(&taken)))
}

/// The linear relaxation, in which fractions of options may be taken.
pub(crate) struct Relaxation {
    /// No allocation loses less than this.
    pub(crate) bound: f64,
    /// An allocation that fits: the relaxation rounded down and filled up.
    pub(crate) choices: Vec<usize>,
    /// The options that the relaxation takes whole.
    pub(crate) whole: Vec<usize>,
    /// The item of which the relaxation takes a part of another option, that option and the part.
    pub(crate) part: Option<(usize, usize, f64)>,
}

/// Solves the linear relaxation.
pub(crate) fn relax(items: &[Vec<Choice>], budget: u64) -> Result<Relaxation, Error> {
    check(items)?;
    let problem = Problem::new(items, budget)?;
    let Relaxed { taken, price, whole, part } = problem.relax();
    let prices = Prices::new(&problem, price);
    let part = part.map(|(item, to, part)| (item, problem.items[item][to].choice, part));
    Ok(Relaxation {
        bound: prices.bound - prices.rounding,
        choices: problem.choices(&taken),
        whole: problem.choices(&whole),
        part,
    })
}

fn check(items: &[Vec<Choice>]) -> Result<(), Error> {
    let (mut cost, mut loss) = (0_u64, 0.0);
    for (item, options) in items.iter().enumerate() {
        let (mut most, mut worst) = (0, 0.0_f64);
        for (option, choice) in options.iter().enumerate() {
            if !choice.loss.is_finite() || choice.loss < 0.0 {
                return Err(Error::Loss { item, option, loss: choice.loss });
            }
            (most, worst) = (most.max(choice.cost), worst.max(choice.loss));
        }
        if options.is_empty() {
            return Err(Error::NoOptions { item });
        }
        cost = cost.checked_add(most).ok_or(Error::CostOverflow)?;
        loss += worst;
    }
    if f64::is_finite(loss) { Ok(()) } else { Err(Error::LossOverflow) }
}

/// An option that no other of its item beats; its cost is what it takes beyond the item's cheapest, in units.
#[derive(Clone, Copy)]
struct Candidate {
    choice: usize,
    cost: u64,
    loss: f64,
}

/// Costs counted from the cheapest options, in their greatest common divisor.
struct Problem {
    items: Vec<Vec<Candidate>>,
    room: u64,
}

impl Problem {
    fn new(items: &[Vec<Choice>], budget: u64) -> Result<Self, Error> {
        let mut items: Vec<_> = items.iter().map(|item| undominated(item)).collect();
        let smallest = items.iter().map(|item| item[0].cost).sum();
        let Some(room) = budget.checked_sub(smallest) else {
            return Err(Error::Infeasible { smallest, budget });
        };
        for item in &mut items {
            let least = item[0].cost;
            item.iter_mut().for_each(|option| option.cost -= least);
        }
        let unit = items.iter().flatten().fold(0, |unit, option| gcd(unit, option.cost)).max(1);
        items.iter_mut().flatten().for_each(|option| option.cost /= unit);
        Ok(Self { items, room: room / unit })
    }

    /// The options at these positions of the lists.
    fn choices(&self, taken: &[usize]) -> Vec<usize> {
        self.items.iter().zip(taken).map(|(item, &at)| item[at].choice).collect()
    }

    /// Positions of options that cost and lose no more than those of an allocation.
    fn positions(&self, items: &[Vec<Choice>], choices: &[usize]) -> Vec<usize> {
        let position = |((list, item), &choice): ((&Vec<Candidate>, &Vec<Choice>), &usize)| {
            let within = |option: &Candidate| item[option.choice].cost <= item[choice].cost;
            list.partition_point(within).saturating_sub(1)
        };
        self.items.iter().zip(items).zip(choices).map(position).collect()
    }

    /// Positions in the lists of options.
    fn solve(&self, known: Option<Vec<usize>>) -> Result<Vec<usize>, Error> {
        let last: Vec<usize> = self.items.iter().map(|item| item.len() - 1).collect();
        if self.cost(&last) <= self.room {
            return Ok(last);
        }
        let Relaxed { taken: mut best, price, .. } = self.relax();
        if let Some(known) = known.filter(|known| self.cost(known) <= self.room && self.loss(known) < self.loss(&best))
        {
            best = known;
        }
        let prices = Prices::new(self, price);
        let mut gap = prices.gap(self.loss(&best));
        for (open, keep) in [(FEW_ITEMS, FEW_STATES), (usize::MAX, FEW_STATES), (usize::MAX, usize::MAX)] {
            if gap <= prices.rounding {
                break;
            }
            if let Some(better) = Core::new(self, &prices, gap, open).search(keep)?
                && self.loss(&better) <= self.loss(&best)
            {
                best = better;
                gap = prices.gap(self.loss(&best));
            }
        }
        Ok(best)
    }

    fn cost(&self, taken: &[usize]) -> u64 {
        self.items.iter().zip(taken).map(|(item, &at)| item[at].cost).sum()
    }

    /// The solution of the linear relaxation.
    fn relax(&self) -> Relaxed {
        let mut steps: Vec<Step> = self.items.iter().enumerate().flat_map(|(item, list)| hull(item, list)).collect();
        steps.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(a.item.cmp(&b.item)).then(a.to.cmp(&b.to)));
        let mut taken = vec![0; self.items.len()];
        let mut stopped = vec![false; self.items.len()];
        let (mut used, mut broken) = (0, None);
        for step in steps.iter().filter(|step| step.rate > 0.0) {
            if stopped[step.item] {
                continue;
            }
            if step.cost <= self.room - used {
                used += step.cost;
                taken[step.item] = step.to;
            } else {
                let part = as_f64(self.room - used) / as_f64(step.cost);
                broken.get_or_insert_with(|| (step.rate, taken.clone(), (step.item, step.to, part)));
                stopped[step.item] = true;
            }
        }
        match broken {
            Some((price, whole, part)) => Relaxed { taken, price, whole, part: Some(part) },
            None => Relaxed { whole: taken.clone(), taken, price: 0.0, part: None },
        }
    }

    fn loss(&self, taken: &[usize]) -> f64 {
        self.items.iter().zip(taken).map(|(item, &at)| item[at].loss).sum()
    }
}

/// The solution of the linear relaxation, in positions of the lists of options.
struct Relaxed {
    /// Rounded down and filled up.
    taken: Vec<usize>,
    /// Its price of one unit of cost.
    price: f64,
    /// What it takes whole.
    whole: Vec<usize>,
    /// The item whose next step does not fit, where that step leads, and the part of it that fits.
    part: Option<(usize, usize, f64)>,
}

/// The options by rising cost and falling loss.
fn undominated(item: &[Choice]) -> Vec<Candidate> {
    let option = |(choice, c): (usize, &Choice)| Candidate { choice, cost: c.cost, loss: c.loss };
    let mut options: Vec<_> = item.iter().enumerate().map(option).collect();
    options.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
    let mut least = f64::INFINITY;
    options.retain(|option| {
        let better = option.loss < least;
        least = least.min(option.loss);
        better
    });
    options
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// From one corner of an item's lower convex hull to the next.
struct Step {
    item: usize,
    to: usize,
    cost: u64,
    /// Loss saved by one unit of cost.
    rate: f64,
}

fn hull(item: usize, options: &[Candidate]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(options.len() - 1);
    for to in 1..options.len() {
        loop {
            let from = steps.last().map_or(0, |step| step.to);
            let cost = options[to].cost - options[from].cost;
            let rate = (options[from].loss - options[to].loss) / as_f64(cost);
            // A step that saves no less than the one before it makes a corner that lies above the hull.
            if steps.last().is_some_and(|before| before.rate <= rate) {
                steps.pop();
                continue;
            }
            steps.push(Step { item, to, cost, rate });
            break;
        }
    }
    steps
}

/// What the price of a unit of cost says about every option.
struct Prices {
    price: f64,
    /// No allocation loses less than this.
    bound: f64,
    /// By how much taking an option raises the bound.
    excess: Vec<Vec<f64>>,
    /// Differences below this are rounding.
    rounding: f64,
}

impl Prices {
    fn new(problem: &Problem, price: f64) -> Self {
        let (mut bound, mut scale) = (-price * as_f64(problem.room), price * as_f64(problem.room));
        let mut excess = Vec::with_capacity(problem.items.len());
        for item in &problem.items {
            let priced: Vec<f64> = item.iter().map(|option| option.loss + price * as_f64(option.cost)).collect();
            let least = priced.iter().copied().fold(f64::INFINITY, f64::min);
            bound += least;
            scale += item[0].loss;
            excess.push(priced.iter().map(|p| p - least).collect());
        }
        Self { price, bound, excess, rounding: ROUNDING * scale }
    }

    /// How much less than `loss` another allocation might lose.
    fn gap(&self, loss: f64) -> f64 {
        loss - self.bound
    }
}

/// The options that may still be part of a better allocation.
struct Core<'a> {
    problem: &'a Problem,
    prices: &'a Prices,
    /// The largest excess a better allocation can have.
    most: f64,
    /// Items and the positions of their options: first those with one option, then those with close alternatives.
    items: Vec<(usize, Vec<usize>)>,
}

/// Sums over the options taken of the first items of the core.
#[derive(Clone, Copy)]
struct State {
    cost: u64,
    loss: f64,
    excess: f64,
    parent: u32,
    position: u32,
}

impl<'a> Core<'a> {
    /// Of the items with alternatives, only the `open` with the closest are left any.
    fn new(problem: &'a Problem, prices: &'a Prices, gap: f64, open: usize) -> Self {
        let most = gap + prices.rounding;
        let mut items: Vec<_> = prices
            .excess
            .iter()
            .map(|excess| (0..excess.len()).filter(|&at| excess[at] <= most).collect::<Vec<_>>())
            .enumerate()
            .collect();
        let second = |(item, kept): &(usize, Vec<usize>)| {
            let mut excess: Vec<f64> = kept.iter().map(|&at| prices.excess[*item][at]).collect();
            excess.sort_by(f64::total_cmp);
            excess.get(1).copied().unwrap_or(0.0)
        };
        items.sort_by(|a, b| second(a).total_cmp(&second(b)));
        for (item, kept) in items.iter_mut().filter(|(_, kept)| kept.len() > 1).skip(open) {
            let excess = |at: &usize| prices.excess[*item][*at];
            let first = kept.iter().copied().min_by(|a, b| excess(a).total_cmp(&excess(b)));
            *kept = first.into_iter().collect();
        }
        Self { problem, prices, most, items }
    }

    /// The best allocation of the core; of lists cut to `keep` states, a good one.
    fn search(&self, keep: usize) -> Result<Option<Vec<usize>>, Error> {
        let (mut least, mut largest) = self.remaining_costs();
        let mut states = vec![State { cost: 0, loss: 0.0, excess: 0.0, parent: 0, position: 0 }];
        let mut trail: Vec<Vec<(u32, u32)>> = Vec::with_capacity(self.items.len());
        let mut kept = 0;
        for (item, positions) in &self.items {
            let costs = || positions.iter().map(|&at| self.problem.items[*item][at].cost);
            least -= costs().min().unwrap_or(0);
            largest -= costs().max().unwrap_or(0);
            states = self.extend(&states, *item, positions, (least, largest));
            keep_most_promising(&mut states, keep);
            // A list of one leads nowhere else: it needs no memory to speak of and is not counted.
            kept += if states.len() > 1 { states.len() } else { 0 };
            if kept > MOST_STATES {
                return Err(Error::TooHard { states: MOST_STATES });
            }
            trail.push(states.iter().map(|state| (state.parent, state.position)).collect());
        }
        // The last undominated state loses least.
        let Some(mut at) = states.len().checked_sub(1) else { return Ok(None) };
        let mut taken = vec![0; self.problem.items.len()];
        for ((item, _), stage) in self.items.iter().zip(&trail).rev() {
            let (parent, position) = stage[at];
            taken[*item] = position as usize;
            at = parent as usize;
        }
        Ok(Some(taken))
    }

    /// Least and largest cost of all items of the core.
    fn remaining_costs(&self) -> (u64, u64) {
        let costs = |(item, kept): &(usize, Vec<usize>)| {
            let cost = |&at: &usize| self.problem.items[*item][at].cost;
            (kept.first().map_or(0, cost), kept.last().map_or(0, cost))
        };
        self.items.iter().map(costs).fold((0, 0), |(least, largest), (a, b)| (least + a, largest + b))
    }

    /// Every state with every option of one more item, by rising cost and falling loss, unless it cannot lead to a better
    /// allocation.
    fn extend(&self, states: &[State], item: usize, positions: &[usize], remaining: (u64, u64)) -> Vec<State> {
        let extended = positions.iter().map(|&at| {
            let (option, more) = (&self.problem.items[item][at], self.prices.excess[item][at]);
            let mut list = Vec::with_capacity(states.len());
            for (parent, state) in states.iter().enumerate() {
                let cost = state.cost + option.cost;
                // The next ones cost more.
                let Some(room) = self.problem.room.checked_sub(cost + remaining.0) else { break };
                let excess = state.excess + more;
                // Room that the remaining items cannot use was paid for in the bound.
                let unused = (room + remaining.0).saturating_sub(remaining.1);
                if excess + self.prices.price * as_f64(unused) <= self.most {
                    let (parent, position) = (index(parent), index(at));
                    list.push(State { cost, loss: state.loss + option.loss, excess, parent, position });
                }
            }
            list
        });
        extended.reduce(|a, b| merge(&a, &b)).unwrap_or_default()
    }
}

/// Two lists by rising cost and falling loss as one. Of equal states that of the first list is left.
fn merge(a: &[State], b: &[State]) -> Vec<State> {
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut least = f64::INFINITY;
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(left), Some(right)) => {
                let first = left.cost.cmp(&right.cost).then(left.loss.total_cmp(&right.loss)).is_le();
                if first { a.next() } else { b.next() }
            }
            (Some(_), None) => a.next(),
            (None, _) => b.next(),
        };
        let Some(state) = next else { return merged };
        if state.loss < least {
            least = state.loss;
            merged.push(*state);
        }
    }
}

/// Leaves the `keep` states with the least excess, in their order.
fn keep_most_promising(states: &mut Vec<State>, keep: usize) {
    if states.len() > keep {
        let mut excess: Vec<f64> = states.iter().map(|state| state.excess).collect();
        let (_, limit, _) = excess.select_nth_unstable_by(keep - 1, f64::total_cmp);
        let limit = *limit;
        states.retain(|state| state.excess <= limit);
    }
}

#[expect(clippy::cast_precision_loss, reason = "rounding of prices is allowed for")]
fn as_f64(cost: u64) -> f64 {
    cost as f64
}

#[expect(clippy::cast_possible_truncation, reason = "lists have fewer than 2^32 states: the search gives up before")]
fn index(at: usize) -> u32 {
    at as u32
}
