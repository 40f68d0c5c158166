//! The gated feed-forward block: `down(act(gate x) ⊙ up x)`.

use super::{Pass, again};
use crate::loader::Loader;
use crate::ops::{self, Rows};
use crate::slot::{Role, Slot};
use crate::{Config, Error};

#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub(super) gate: Slot,
    pub(super) up: Slot,
    pub(super) down: Slot,
}

impl Mlp {
    /// What most families call the projections.
    pub(super) const PARTS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

    /// The projections `name.part` for the three `parts`, gate, up and down, with `inner` elements between them.
    pub(super) fn load(
        loader: &Loader<'_>,
        config: &Config,
        role: Role,
        name: &str,
        parts: [&str; 3],
        inner: usize,
    ) -> Result<Self, Error> {
        let hidden = config.hidden_size;
        let slot = |part: &str, shape| loader.slot(format!("{name}.{part}"), role, shape, config.mlp_bias);
        Ok(Self {
            gate: slot(parts[0], [inner, hidden])?,
            up: slot(parts[1], [inner, hidden])?,
            down: slot(parts[2], [hidden, inner])?,
        })
    }

    pub(super) fn groups(&self) -> Vec<Vec<&Slot>> {
        vec![vec![&self.gate, &self.up], vec![&self.down]]
    }

    pub(super) fn slots_mut(&mut self) -> Vec<&mut Slot> {
        vec![&mut self.gate, &mut self.up, &mut self.down]
    }

    pub(super) fn forward(&self, x: &Rows, pass: &mut Pass<'_>) -> Result<Rows, Error> {
        let mut gate = self.gate.forward(x, again(&mut pass.observer))?;
        let up = self.up.forward(x, again(&mut pass.observer))?;
        gate.update_with(&up, |gate, up| ops::gated(pass.config.activation, gate, up))?;
        self.down.forward(&gate, again(&mut pass.observer))
    }
}
