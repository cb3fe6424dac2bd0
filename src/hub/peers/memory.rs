//! The allocated memory of collections in bytes, as requested from the allocator. Tests compare the
//! sums with a counting allocator.

use std::collections::hash_map::HashMap;

use roaring::RoaringBitmap;

/// Returns the memory of a map, without that of the parts of its entries.
pub(super) fn of_map<K, V>(map: &HashMap<K, V>) -> usize {
    // The capacity is seven eighths of the number of buckets, which is a power of two. Each bucket
    // has one more byte, and the map 16 bytes in addition.
    let buckets = (map.capacity() * 8).div_ceil(7).next_power_of_two();
    if map.capacity() == 0 { 0 } else { buckets * (size_of::<(K, V)>() + 1) + 16 }
}

/// Returns an estimate of the memory of a bitmap.
pub(super) fn of_bitmap(bitmap: &RoaringBitmap) -> usize {
    /// The size of a container, which the bitmap has for each range of 65,536 numbers.
    const CONTAINER: usize = 32;
    let statistics = bitmap.statistics();
    // The statistics count four bytes for each value of an array, and a value takes two.
    let values = statistics.n_bytes_array_containers / 2 + statistics.n_bytes_bitset_containers;
    // A vector has room for at least four values of this size, and doubles when it is full.
    let containers = match statistics.n_containers as usize {
        0 => 0,
        count => count.next_power_of_two().max(4),
    };
    containers * CONTAINER + values as usize
}
