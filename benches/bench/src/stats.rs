//! Medians, spreads, ratios with intervals, percentiles.
//!
//! Invariant: everything is deterministic: the bootstrap draws from a fixed seed, so that the same results always make
//! the same report.

/// The median; the mean of the middle two for an even count. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

/// The distance from the smallest to the largest value, as a share of the median.
pub fn spread(values: &[f64]) -> Option<f64> {
    let median = median(values)?;
    let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(*v), h.max(*v)));
    (median > 0.0).then(|| (high - low) / median)
}

/// The geometric mean of positive values; `None` of nothing.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0.0, 0u32), |(sum, n), value| (sum + value.ln(), n + 1));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

/// A ratio of medians with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The ratio of the medians.
    pub value: f64,
    /// 2.5 % of resampled ratios lie below.
    pub low: f64,
    /// 2.5 % of resampled ratios lie above.
    pub high: f64,
}

/// `subject`'s median against the smallest median among `others`, with a bootstrap interval (Efron 1979).
///
/// The rounds of each allocator are resampled with replacement, and the best of the others is chosen anew in each
/// resample, so that the interval holds the luck of being best as well. `None` when either side has no values.
pub fn ratio_to_best(subject: &[f64], others: &[&[f64]]) -> Option<Ratio> {
    const RESAMPLES: usize = 1000;
    let best = |medians: &mut dyn Iterator<Item = Option<f64>>| medians.flatten().min_by(f64::total_cmp);
    let value = median(subject)? / best(&mut others.iter().map(|rounds| median(rounds)))?;
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut resampled = |rounds: &[f64]| -> Option<f64> {
        let draw: Vec<f64> = (0..rounds.len())
            .map(|_| {
                // Marsaglia's xorshift64* (2003).
                state ^= state >> 12;
                state ^= state << 25;
                state ^= state >> 27;
                let random = state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
                rounds[random as usize % rounds.len()]
            })
            .collect();
        median(&draw)
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| {
            let top = resampled(subject)?;
            Some(top / best(&mut others.iter().map(|rounds| resampled(rounds)))?)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share).round() as usize];
    Some(Ratio { value, low: at(0.025), high: at(0.975) })
}

/// The value below which `share` of the samples of a histogram of `(upper bound, count)` lie.
pub fn percentile(histogram: &[(u64, u64)], share: f64) -> Option<u64> {
    let total: u64 = histogram.iter().map(|bucket| bucket.1).sum();
    let rank = (total as f64 * share).ceil().max(1.0) as u64;
    let mut seen = 0;
    histogram.iter().find_map(|&(upper, count)| {
        seen += count;
        (seen >= rank).then_some(upper)
    })
}

/// Adds the counts of `more` to `histogram`, keeping it sorted by bound.
pub fn merge_histogram(histogram: &mut Vec<(u64, u64)>, more: &[(u64, u64)]) {
    for &(upper, count) in more {
        match histogram.binary_search_by_key(&upper, |bucket| bucket.0) {
            Ok(at) => histogram[at].1 += count,
            Err(at) => histogram.insert(at, (upper, count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(spread(&[9.0, 10.0, 12.0]), Some(0.3));
    }

    #[test]
    fn a_geometric_mean_is_fair_to_doubling_and_halving() {
        let mean = geometric_mean([0.5, 2.0]).expect("two values");
        assert!((mean - 1.0).abs() < 1e-12);
        assert_eq!(geometric_mean([]), None);
    }

    #[test]
    fn the_ratio_is_to_the_best_of_the_others_and_lies_in_its_interval() {
        let ratio =
            ratio_to_best(&[5.0, 5.0, 6.0], &[&[10.0, 11.0, 10.0], &[20.0, 20.0, 20.0]]).expect("values");
        assert_eq!(ratio.value, 0.5);
        assert!(ratio.low <= 0.5 && ratio.high >= 0.5 && ratio.low >= 0.4 && ratio.high <= 0.65, "{ratio:?}");
        assert_eq!(ratio_to_best(&[], &[&[1.0]]), None);
        assert_eq!(ratio_to_best(&[1.0], &[]), None);
    }

    #[test]
    fn an_interval_widens_with_the_noise() {
        let calm = ratio_to_best(&[10.0, 10.1, 9.9], &[&[10.0, 10.0, 10.0]]).expect("values");
        let wild = ratio_to_best(&[10.0, 15.0, 5.0], &[&[10.0, 10.0, 10.0]]).expect("values");
        assert!(wild.high - wild.low > 5.0 * (calm.high - calm.low), "{calm:?} {wild:?}");
    }

    #[test]
    fn percentiles_count_samples_not_buckets() {
        let mut histogram = vec![(10, 900), (1000, 1)];
        merge_histogram(&mut histogram, &[(10, 90), (20, 9)]);
        assert_eq!(histogram, [(10, 990), (20, 9), (1000, 1)]);
        assert_eq!(percentile(&histogram, 0.5), Some(10));
        assert_eq!(percentile(&histogram, 0.995), Some(20));
        assert_eq!(percentile(&histogram, 0.9999), Some(1000));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
