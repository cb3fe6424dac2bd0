//! Percentiles, medians, spreads.

/// How many parts each doubling is divided into: a percentile is right within 1.6 %.
const PARTS: u64 = 64;

/// How often each time was seen, in nanoseconds.
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

    /// The value that this part of all are not above; none of none.
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
        // At least `PARTS`, so that it has the bits that are kept.
        let shift = u64::from(value.ilog2() - PARTS.ilog2());
        (shift * PARTS + (value >> shift) - PARTS) as usize
    }

    /// The middle of a place.
    fn value(place: usize) -> f64 {
        let (shift, part) = (place as u64 / PARTS, place as u64 % PARTS);
        ((PARTS + part) as f64 + 0.5) * (1_u64 << shift) as f64
    }
}

/// The median of some figures, and between which they lie.
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
