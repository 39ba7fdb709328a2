//! Prints the table of size classes; the last line says how much of the slabs is blocks.

use terrane_slab::size_class::{TABLE, utilisation};

fn main() {
    println!(
        "{:>5} {:>8} {:>11} {:>7} {:>12} {:>11} {:>12}",
        "class", "size", "slab bytes", "blocks", "worst waste", "tail bytes", "utilisation"
    );
    let mut below = 0;
    for (number, class) in TABLE.iter().enumerate() {
        let (block, slab) = (class.block_bytes as usize, class.slab_bytes());
        // The smallest request of the class loses most: it is one byte longer than the blocks of the class below.
        let waste = 100.0 * (block - below - 1) as f64 / block as f64;
        let used = 100.0 * (slab - class.tail_waste()) as f64 / slab as f64;
        println!(
            "{number:>5} {block:>8} {slab:>11} {:>7} {waste:>10.1} % {:>11} {used:>10.2} %",
            class.blocks,
            class.tail_waste()
        );
        below = block;
    }
    let (worst, average) = utilisation();
    // Tenths are cut off, not rounded: the figures are floors.
    let tenths = |hundredths: u32| format!("{}.{}", hundredths / 100, hundredths % 100 / 10);
    println!("worst {} % average {} %", tenths(worst), tenths(average));
}
