//! Percentiles, medians and spreads.

/// The number of buckets for each power of two. A percentile is exact within 1.6 %.
const PARTS: u64 = 64;

/// A histogram of times in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u32>,
    total: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; 64 * PARTS as usize], total: 0 }
    }

    pub fn add(&mut self, value: u64) {
        self.counts[Self::place(value)] += 1;
        self.total += 1;
    }

    pub fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// Returns the value below or at which this part of all values lies, or `None` without values.
    pub fn percentile(&self, part: f64) -> Option<f64> {
        let wanted = (part * self.total as f64).ceil() as u64;
        let mut seen = 0;
        let place = self.counts.iter().position(|count| {
            seen += u64::from(*count);
            seen >= wanted.max(1)
        })?;
        Some(Self::value(place))
    }

    fn place(value: u64) -> usize {
        let value = value.max(PARTS);
        // At least `PARTS`, so that the value has all the bits of a bucket's number.
        let shift = u64::from(value.ilog2() - PARTS.ilog2());
        (shift * PARTS + (value >> shift) - PARTS) as usize
    }

    /// Returns the middle of a bucket.
    fn value(place: usize) -> f64 {
        let (shift, part) = (place as u64 / PARTS, place as u64 % PARTS);
        ((PARTS + part) as f64 + 0.5) * (1_u64 << shift) as f64
    }
}

/// The median, minimum and maximum of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.retain(|value| value.is_finite());
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }
}
