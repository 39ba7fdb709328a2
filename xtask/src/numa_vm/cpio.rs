//! A cpio archive (the form "newc" of the kernel's initramfs) that holds one program.

/// An archive with `program` as `/init`, and the console that it prints on.
pub fn archive(program: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() + 1024);
    entry(&mut bytes, "dev", 0o040_755, &[], (0, 0));
    entry(&mut bytes, "dev/console", 0o020_600, &[], (5, 1));
    entry(&mut bytes, "init", 0o100_755, program, (0, 0));
    entry(&mut bytes, "TRAILER!!!", 0, &[], (0, 0));
    bytes
}

/// Adds a file: a header of hexadecimal numbers, the name with a zero byte, the contents, each filled up to four bytes.
fn entry(bytes: &mut Vec<u8>, name: &str, mode: u32, contents: &[u8], device: (u32, u32)) {
    // Inode numbers only have to differ.
    let inode = bytes.len() as u32 + 1;
    let (user, group, links, time) = (0, 0, 1, 0);
    let (major, minor, checksum) = (0, 0, 0);
    let numbers = [
        inode,
        mode,
        user,
        group,
        links,
        time,
        contents.len() as u32,
        major,
        minor,
        device.0,
        device.1,
        name.len() as u32 + 1,
        checksum,
    ];
    bytes.extend(b"070701");
    numbers.iter().for_each(|number| bytes.extend(format!("{number:08X}").into_bytes()));
    bytes.extend(name.as_bytes());
    bytes.push(0);
    fill(bytes);
    bytes.extend(contents);
    fill(bytes);
}

fn fill(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::archive;

    #[test]
    fn the_program_stands_behind_its_header_at_a_multiple_of_four() {
        let bytes = archive(b"program!!");
        let at = bytes.windows(9).position(|window| window == b"program!!").unwrap();
        assert_eq!(at % 4, 0);
        // The name takes five bytes, and one more fills the header up.
        let header = &bytes[at - 6 - 110..at - 6];
        assert_eq!(&header[..6], b"070701");
        assert_eq!(&header[6 + 6 * 8..6 + 7 * 8], b"00000009", "the length of the contents");
        assert_eq!(&bytes[at - 6..at - 1], b"init\0");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0") && bytes.len().is_multiple_of(4));
    }
}
