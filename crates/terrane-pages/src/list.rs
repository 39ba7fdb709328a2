//! The kernel's notation for sets of numbers: `0-3,8,10-11`.

/// The ranges of a list, first and last number both inside. Ends at the first thing that is not a range.
pub(crate) fn ranges(text: &[u8]) -> impl Iterator<Item = (u32, u32)> + '_ {
    text.trim_ascii().split(|&byte| byte == b',').map_while(|part| {
        let mut ends = part.splitn(2, |&byte| byte == b'-').map(number);
        let first = ends.next()??;
        let last = ends.next().unwrap_or(Some(first))?;
        (first <= last).then_some((first, last))
    })
}

/// A number in decimal digits, nothing before or after it.
pub(crate) fn number(text: &[u8]) -> Option<u32> {
    // `parse` would take a sign as well.
    text.first().filter(|byte| byte.is_ascii_digit())?;
    core::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert!(ranges(b"0-3,8,10-11\n").eq([(0, 3), (8, 8), (10, 11)]));
        assert!(ranges(b"0\n").eq([(0, 0)]));
        assert!(ranges(b"\n").eq([]));
        assert!(ranges(b"5-2").eq([]));
        assert!(ranges(b"1,x,3").eq([(1, 1)]));
        assert!(ranges(b"+1").eq([]));
    }
}
