//! Independent pieces of work, on threads where the feature `rayon` is on and the work is worth it.

use crate::Error;

/// Elements below which one thread is faster.
const LEAST_ELEMENTS: usize = 1 << 16;

/// Does every piece of work, each of about `elements` elements; the error of the first piece, in
/// order, that fails is returned, whatever the number of threads.
pub(crate) fn for_each<T: Send>(
    work: Vec<T>,
    elements: usize,
    f: impl Fn(T) -> Result<(), Error> + Send + Sync,
) -> Result<(), Error> {
    for_each_above(LEAST_ELEMENTS, work, elements, f)
}

/// The same for work that is worth threads from `least_elements` on.
pub(crate) fn for_each_above<T: Send>(
    least_elements: usize,
    work: Vec<T>,
    elements: usize,
    f: impl Fn(T) -> Result<(), Error> + Send + Sync,
) -> Result<(), Error> {
    #[cfg(feature = "rayon")]
    {
        use rayon::prelude::*;
        if work.len() > 1 && work.len().saturating_mul(elements) >= least_elements && rayon::current_num_threads() > 1 {
            let least = (least_elements / 4 / elements.max(1)).max(1);
            let failed = work.into_par_iter().with_min_len(least).find_map_first(|item| f(item).err());
            return failed.map_or(Ok(()), Err);
        }
    }
    let _ = (least_elements, elements);
    work.into_iter().try_for_each(f)
}
