//! The crate's error type.

/// Why no allocation could be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An item offers nothing to choose.
    #[error("item {item} has no options")]
    NoOptions {
        /// The item.
        item: usize,
    },
    /// A loss is NaN, infinite or negative.
    #[error("option {option} of item {item} has loss {loss}; losses are finite and not negative")]
    Loss {
        /// The item.
        item: usize,
        /// Its option.
        option: usize,
        /// The loss given.
        loss: f64,
    },
    /// A time is NaN, infinite or negative.
    #[error("option {option} of item {item} has time {time}; times are finite and not negative")]
    Time {
        /// The item.
        item: usize,
        /// Its option.
        option: usize,
        /// The time given.
        time: f64,
    },
    /// Even the cheapest options together cost too much.
    #[error("the budget is {budget}, but the cheapest options together cost {smallest}")]
    Infeasible {
        /// The least budget that would do.
        smallest: u64,
        /// The budget given.
        budget: u64,
    },
    /// The costs of all items together do not fit 64 bits.
    #[error("the costs add up to more than 64 bits hold; count in a larger unit")]
    CostOverflow,
    /// The losses or times of all items together are not finite.
    #[error("the losses or times add up to infinity; scale them down")]
    LossOverflow,
    /// The search would keep more states than is sensible.
    #[error("more than {states} partial allocations are left to tell apart; count costs in a coarser unit")]
    TooHard {
        /// Partial allocations kept before the search gave up.
        states: usize,
    },
    /// The exponent of the product is outside [0, 1].
    #[error("the exponent of the loss is {exponent}, expected a number from 0 to 1")]
    Exponent {
        /// The exponent given.
        exponent: f64,
    },
    /// A tie names an item that does not exist.
    #[error("a tie names item {item}, but there are {items} items")]
    NoSuchItem {
        /// The item named.
        item: usize,
        /// Number of items.
        items: usize,
    },
    /// Two ties name the same item, or one names it twice.
    #[error("item {item} is tied twice")]
    TiedTwice {
        /// The item.
        item: usize,
    },
    /// Tied items have different numbers of options.
    #[error("item {item} has {found} options, the item it is tied to has {expected}")]
    TiedOptions {
        /// The item.
        item: usize,
        /// Options of the first item of the tie.
        expected: usize,
        /// Options of this one.
        found: usize,
    },
    /// Items or choices do not match the ties in number.
    #[error("{found} items or choices given, the ties were made for {expected}")]
    Count {
        /// The number that the ties were made for.
        expected: usize,
        /// The number given.
        found: usize,
    },
}
