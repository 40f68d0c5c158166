//! Items that must take the same option.

use crate::{Choice, Error, TimedChoice};

/// Which items take the same option: the gate and up matrices of an expert, layers that share their cache.
///
/// Tied items become one item whose costs, losses and times are the sums of theirs.
///
/// ```
/// use bit_allocation::{Choice, Ties, allocate};
/// let items = vec![vec![Choice { cost: 2, loss: 5.0 }, Choice { cost: 4, loss: 1.0 }]; 3];
/// let ties = Ties::new(3, &[vec![0, 2]])?;
/// let best = allocate(&ties.join(&items)?, 10)?;
/// assert_eq!(ties.spread(&best.choices)?, [1, 0, 1]);
/// # Ok::<(), bit_allocation::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ties {
    /// For each item, the joint item it is part of; joint items are numbered by their first member.
    joint: Vec<usize>,
    /// Number of joint items.
    count: usize,
}

impl Ties {
    /// Ties among `items` items; items that no group names stay alone.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchItem`] and [`Error::TiedTwice`].
    pub fn new(items: usize, groups: &[Vec<usize>]) -> Result<Self, Error> {
        let mut group_of = vec![None; items];
        for (group, members) in groups.iter().enumerate() {
            for &item in members {
                let slot = group_of.get_mut(item).ok_or(Error::NoSuchItem { item, items })?;
                if slot.replace(group).is_some() {
                    return Err(Error::TiedTwice { item });
                }
            }
        }
        let mut number = vec![None; groups.len()];
        let (mut joint, mut count) = (Vec::with_capacity(items), 0);
        for group in group_of {
            let known = group.and_then(|group| number[group]);
            joint.push(known.unwrap_or(count));
            if known.is_none() {
                if let Some(group) = group {
                    number[group] = Some(count);
                }
                count += 1;
            }
        }
        Ok(Self { joint, count })
    }

    /// Joins the options of tied items.
    ///
    /// # Errors
    ///
    /// [`Error::Count`], [`Error::TiedOptions`], [`Error::CostOverflow`].
    pub fn join<C: Joint>(&self, items: &[Vec<C>]) -> Result<Vec<Vec<C>>, Error> {
        self.check(self.joint.len(), items.len())?;
        let mut joined: Vec<Vec<C>> = Vec::with_capacity(self.count);
        for (item, (options, &joint)) in items.iter().zip(&self.joint).enumerate() {
            let Some(sums) = joined.get_mut(joint) else {
                joined.push(options.clone());
                continue;
            };
            if sums.len() != options.len() {
                return Err(Error::TiedOptions { item, expected: sums.len(), found: options.len() });
            }
            for (sum, option) in sums.iter_mut().zip(options) {
                *sum = sum.checked_add(*option).ok_or(Error::CostOverflow)?;
            }
        }
        Ok(joined)
    }

    /// The choices of all items from those of the joint ones.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] when there is not one choice for each joint item.
    pub fn spread(&self, choices: &[usize]) -> Result<Vec<usize>, Error> {
        self.check(self.count, choices.len())?;
        Ok(self.joint.iter().map(|&joint| choices[joint]).collect())
    }

    fn check(&self, expected: usize, found: usize) -> Result<(), Error> {
        if expected == found { Ok(()) } else { Err(Error::Count { expected, found }) }
    }
}

/// Options that can be taken together: [`Choice`] and [`TimedChoice`].
pub trait Joint: Copy + sealed::Sealed {
    /// Both at once; `None` when the costs overflow.
    fn checked_add(self, other: Self) -> Option<Self>;
}

impl Joint for Choice {
    fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self { cost: self.cost.checked_add(other.cost)?, loss: self.loss + other.loss })
    }
}

impl Joint for TimedChoice {
    fn checked_add(self, other: Self) -> Option<Self> {
        let cost = self.cost.checked_add(other.cost)?;
        Some(Self { cost, loss: self.loss + other.loss, time: self.time + other.time })
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::Choice {}
    impl Sealed for crate::TimedChoice {}
}
