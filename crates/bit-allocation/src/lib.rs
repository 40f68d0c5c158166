//! One option per item under a budget: exact knapsack, hull search for two objectives.

#![forbid(unsafe_code)]
