//! Which channels share a range.

use crate::Error;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::ops::Range;

/// An order of channels and where it is cut into groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReorderPlan {
    order: Vec<u32>,
    /// One past the last channel of each group.
    bounds: Vec<u32>,
}

/// Restarts of k-means, and rounds of each, as scikit-learn counts them in the reference.
const RESTARTS: u64 = 10;
const ROUNDS: usize = 300;
/// Rounds of balanced assignment: it need not settle.
const BALANCED_ROUNDS: usize = 50;

impl ReorderPlan {
    /// A plan from its parts: the channel at each place, and the end of each group.
    ///
    /// # Errors
    ///
    /// [`Error::Permutation`] when not every channel is named once; [`Error::Unsupported`] when the ends do not rise to
    /// the number of channels.
    pub fn new(order: Vec<u32>, bounds: Vec<u32>) -> Result<Self, Error> {
        let channels = order.len();
        let mut seen = vec![false; channels];
        for (at, &channel) in order.iter().enumerate() {
            let fresh = seen.get_mut(channel as usize).is_some_and(|seen| !std::mem::replace(seen, true));
            if !fresh {
                return Err(Error::Permutation { at, channel: channel as usize, channels });
            }
        }
        let rising = bounds.first().is_some_and(|&first| first > 0) && bounds.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || bounds.last().map(|&last| last as usize) != Some(channels) {
            return Err(Error::Unsupported {
                what: "bounds of channel groups",
                found: format!("{bounds:?} for {channels} channels"),
                supported: "rising numbers that end at the number of channels",
            });
        }
        Ok(Self { order, bounds })
    }

    /// Groups of `group` neighbouring channels, the last one perhaps smaller: no reordering.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for no channels, or groups of none.
    pub fn identity(channels: usize, group: usize) -> Result<Self, Error> {
        check_sizes(channels, group)?;
        Self::new(
            (0..channels).map(as_u32).collect(),
            (1..=channels.div_ceil(group)).map(|g| as_u32(channels.min(g * group))).collect(),
        )
    }

    /// Groups channels by their least and largest value over calibration tokens: k-means on the points (min, max), with
    /// k-means++ starts from `seed` (ChaCha8), the best of ten runs.
    ///
    /// As in the paper, `⌈channels/group⌉` clusters have whatever sizes come out, and a few channels unlike all others
    /// have clusters of their own. With `balanced`, clusters have `group` channels each (the last
    /// perhaps fewer), which is kinder to vector code and worse on heavy tails: channels choose in the order of what
    /// being refused would cost them.
    ///
    /// # Errors
    ///
    /// [`Error::Width`] when the two lists differ in length, [`Error::Parameter`] for statistics that are not finite,
    /// [`Error::Unsupported`] as [`ReorderPlan::identity`].
    ///
    /// # Examples
    ///
    /// ```
    /// use kv_cache_quant::ReorderPlan;
    /// let (min, max) = ([-1.0, 9.0, -1.1, 9.5], [1.0, 11.0, 0.9, 10.0]);
    /// let plan = ReorderPlan::kmeans(&min, &max, 2, 0, false)?;
    /// assert_eq!((plan.order(), plan.bounds()), (&[0, 2, 1, 3][..], &[2, 4][..]));
    /// # Ok::<(), kv_cache_quant::Error>(())
    /// ```
    pub fn kmeans(min: &[f32], max: &[f32], group: usize, seed: u64, balanced: bool) -> Result<Self, Error> {
        if min.len() != max.len() {
            return Err(Error::Width { what: "list of largest values", expected: min.len(), found: max.len() });
        }
        check_sizes(min.len(), group)?;
        for (what, values) in [("least value", min), ("largest value", max)] {
            if let Some((channel, &value)) = values.iter().enumerate().find(|(_, x)| !x.is_finite()) {
                return Err(Error::Parameter { what, channel, value, positive: false });
            }
        }
        let points: Vec<Point> = min.iter().zip(max).map(|(&lo, &hi)| [f64::from(lo), f64::from(hi)]).collect();
        let clusters = points.len().div_ceil(group);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let runs = (0..RESTARTS).map(|_| {
            let (labels, cost) = lloyd(&points, start(&points, clusters, &mut random));
            if balanced { balance(&points, &labels, clusters, group) } else { (labels, cost) }
        });
        let best = runs.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(labels, _)| labels).unwrap_or_default();
        Self::from_labels(&best)
    }

    /// Clusters by their first channel, channels of a cluster in their order.
    fn from_labels(labels: &[usize]) -> Result<Self, Error> {
        let mut groups: Vec<Vec<u32>> = vec![Vec::new(); labels.iter().max().map_or(0, |most| most + 1)];
        labels.iter().enumerate().for_each(|(channel, &label)| groups[label].push(as_u32(channel)));
        groups.retain(|group| !group.is_empty());
        groups.sort_by_key(|group| group[0]);
        let bounds = groups.iter().scan(0, |end, group| {
            *end += group.len();
            Some(as_u32(*end))
        });
        Self::new(groups.concat(), bounds.collect())
    }

    /// Number of channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.order.len()
    }

    /// Number of groups.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.bounds.len()
    }

    /// The channel at each place.
    #[must_use]
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// One past the last place of each group.
    #[must_use]
    pub fn bounds(&self) -> &[u32] {
        &self.bounds
    }

    /// The places of each group.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let starts = std::iter::once(0).chain(self.bounds.iter().copied());
        starts.zip(&self.bounds).map(|(start, &end)| start as usize..end as usize)
    }

    pub(crate) fn bytes(&self) -> u64 {
        4 * (self.order.capacity() + self.bounds.capacity()) as u64
    }
}

fn check_sizes(channels: usize, group: usize) -> Result<(), Error> {
    if channels > 0 && channels <= 1 << 24 && group > 0 {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "reordering",
        found: format!("{channels} channels in groups of {group}"),
        supported: "1 to 2^24 channels, groups of at least one",
    })
}

#[expect(clippy::cast_possible_truncation, reason = "at most 2^24 channels")]
fn as_u32(channel: usize) -> u32 {
    channel as u32
}

type Point = [f64; 2];

fn distance(a: Point, b: Point) -> f64 {
    (a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)
}

/// k-means++: each further centre is a point, drawn with a probability in proportion to its squared distance.
fn start(points: &[Point], clusters: usize, random: &mut ChaCha8Rng) -> Vec<Point> {
    let mut unit = || f64::from(random.next_u32()) / 4_294_967_296.0;
    let mut nearest = vec![f64::INFINITY; points.len()];
    let mut centres: Vec<Point> = Vec::with_capacity(clusters);
    while centres.len() < clusters {
        let total: f64 = nearest.iter().sum();
        let at = if centres.is_empty() {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an index below the number of channels"
            )]
            let first = (unit() * points.len() as f64) as usize;
            first
        } else {
            let mut left = unit() * total;
            let drawn = nearest.iter().position(|d| {
                left -= d;
                *d > 0.0 && left < 0.0
            });
            // All points are centres already: any will do.
            drawn.unwrap_or(centres.len())
        };
        let centre = points[at.min(points.len() - 1)];
        nearest.iter_mut().zip(points).for_each(|(d, &p)| *d = d.min(distance(p, centre)));
        centres.push(centre);
    }
    centres
}

/// Lloyd's iterations from given centres: labels, and the sum of squared distances.
fn lloyd(points: &[Point], mut centres: Vec<Point>) -> (Vec<usize>, f64) {
    let mut labels = vec![usize::MAX; points.len()];
    for _ in 0..ROUNDS {
        let next: Vec<usize> = points.iter().map(|&p| nearest(p, &centres)).collect();
        if next == labels {
            break;
        }
        labels = next;
        move_centres(points, &labels, &mut centres);
    }
    let cost = points.iter().zip(&labels).map(|(&p, &label)| distance(p, centres[label])).sum();
    (labels, cost)
}

fn nearest(point: Point, centres: &[Point]) -> usize {
    let by_distance = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1);
    centres.iter().map(|&c| distance(point, c)).enumerate().min_by(by_distance).map_or(0, |(at, _)| at)
}

/// Moves each centre to the mean of its points; one without points stays.
fn move_centres(points: &[Point], labels: &[usize], centres: &mut [Point]) {
    let mut sums = vec![([0.0, 0.0], 0.0); centres.len()];
    for (point, &label) in points.iter().zip(labels) {
        let (sum, count): &mut (Point, f64) = &mut sums[label];
        *sum = [sum[0] + point[0], sum[1] + point[1]];
        *count += 1.0;
    }
    for (centre, (sum, count)) in centres.iter_mut().zip(sums) {
        if count > 0.0 {
            *centre = [sum[0] / count, sum[1] / count];
        }
    }
}

/// Makes clusters of `group` points each from free ones: the points with most to lose choose first, until nothing gets
/// better.
fn balance(points: &[Point], labels: &[usize], clusters: usize, group: usize) -> (Vec<usize>, f64) {
    let mut centres = vec![[0.0, 0.0]; clusters];
    move_centres(points, labels, &mut centres);
    let mut best = (labels.to_vec(), f64::INFINITY);
    for _ in 0..BALANCED_ROUNDS {
        let labels = assign(points, &centres, group);
        move_centres(points, &labels, &mut centres);
        let cost = points.iter().zip(&labels).map(|(&p, &label)| distance(p, centres[label])).sum();
        if cost >= best.1 {
            break;
        }
        best = (labels, cost);
    }
    best
}

/// Gives each point the nearest centre that has room, points with the largest gap between their first and second choice
/// first.
fn assign(points: &[Point], centres: &[Point], group: usize) -> Vec<usize> {
    let regret = |p: Point| {
        let (mut first, mut second) = (f64::INFINITY, f64::INFINITY);
        for &centre in centres {
            let d = distance(p, centre);
            (first, second) = if d < first { (d, first) } else { (first, second.min(d)) };
        }
        second - first
    };
    let mut order: Vec<(usize, f64)> = points.iter().map(|&p| regret(p)).enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut room = vec![group; centres.len()];
    // Only the last group of all may be smaller.
    if let Some(last) = room.last_mut() {
        *last = points.len() - group * (centres.len() - 1);
    }
    let mut labels = vec![0; points.len()];
    for (at, _) in order {
        let open = centres.iter().enumerate().filter(|&(label, _)| room[label] > 0);
        let nearest = open.min_by(|a, b| distance(points[at], *a.1).total_cmp(&distance(points[at], *b.1)));
        if let Some((label, _)) = nearest {
            labels[at] = label;
            room[label] -= 1;
        }
    }
    labels
}
