//! Values with small numbers as keys.
//!
//! The values are in pages. A vector would hold up to twice the memory after it has grown, and
//! would move all values under the lock of its owner.

/// The number of values of one page.
const PAGE: usize = 1024;

/// Values that are found by a number. The number of a removed value is used again.
#[derive(Debug)]
pub(super) struct Slots<T> {
    pages: Vec<Vec<T>>,
    /// The numbers that are not used.
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { pages: Vec::new(), free: Vec::new() }
    }
}

impl<T: Default> Slots<T> {
    /// Adds a value and returns its number.
    pub(super) fn insert(&mut self, value: T) -> u32 {
        if let Some(number) = self.free.pop() {
            *self.at(number) = value;
            return number;
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let full = self.pages.len() - 1;
        let page = &mut self.pages[full];
        page.push(value);
        (full * PAGE + page.len() - 1) as u32
    }

    /// Removes the value with this number, which has to be in use.
    pub(super) fn remove(&mut self, number: u32) -> T {
        let value = std::mem::take(self.at(number));
        self.free.push(number);
        if self.free.len() == self.count() {
            *self = Self::default();
        }
        value
    }

    /// Returns the value with this number, which has to be in use.
    pub(super) fn get(&self, number: u32) -> &T {
        &self.pages[number as usize / PAGE][number as usize % PAGE]
    }

    pub(super) fn at(&mut self, number: u32) -> &mut T {
        &mut self.pages[number as usize / PAGE][number as usize % PAGE]
    }

    /// Returns a number above those of all values.
    #[cfg(any(test, feature = "test-kit"))]
    pub(super) fn end(&self) -> u32 {
        self.count() as u32
    }

    /// Returns the number of values, removed ones included.
    fn count(&self) -> usize {
        self.pages.last().map_or(0, |last| (self.pages.len() - 1) * PAGE + last.len())
    }

    pub(super) fn len(&self) -> usize {
        self.count() - self.free.len()
    }

    /// Returns the allocated memory in bytes, without that of the values' own parts.
    #[cfg(any(test, feature = "test-kit"))]
    pub(super) fn allocated(&self) -> usize {
        self.pages.len() * PAGE * size_of::<T>()
            + self.pages.capacity() * size_of::<Vec<T>>()
            + self.free.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_a_removed_value_is_used_again_and_the_others_stay() {
        let mut slots = Slots::default();
        let numbers: Vec<u32> = (0..3 * PAGE as u32).map(|value| slots.insert(value)).collect();
        assert!(numbers.iter().all(|number| slots.get(*number) == number));
        assert_eq!((slots.remove(7), slots.len()), (7, 3 * PAGE - 1));
        assert_eq!((slots.insert(70), *slots.get(7)), (7, 70));
        *slots.at(8) = 80;
        assert_eq!((*slots.get(8), *slots.get(2 * PAGE as u32)), (80, 2 * PAGE as u32));
        numbers.iter().for_each(|number| _ = slots.remove(*number));
        assert_eq!((slots.len(), slots.allocated()), (0, 0), "the pages are freed with the last value");
    }
}
