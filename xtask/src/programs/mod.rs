//! Real programs, preloaded: what they print and leave behind is the same as without Terrane.
//!
//! Every program is played twice in the same folder, first on the system's allocator, then on Terrane, and the
//! two transcripts (exit code, standard output and error, hashes of files) are compared byte by byte. That the library
//! was really there is known from the report that it leaves; a preload that the loader ignored is a failure.

mod compilers;
mod languages;
mod redis;
mod stage;
mod suites;
mod tools;

use crate::test::{Check, Room, Verdict, Wanted, build_library, ensure};
use crate::workspace::{Error, has_crate, library};
use stage::Stage;
use std::fs;

/// One program: what it wants, and how it is played.
pub struct Program {
    /// Name of the check.
    name: &'static str,
    /// What has to be on the machine.
    wants: &'static [Wanted],
    /// Plays the program once and returns the transcript, or what went wrong.
    play: fn(&Stage) -> Result<Vec<u8>, Error>,
}

/// The checks, one per program; none while there is no library to preload.
pub fn all() -> Vec<Check> {
    if !has_crate("terrane-malloc") {
        return Vec::new();
    }
    [tools::PROGRAMS, languages::PROGRAMS, compilers::PROGRAMS, redis::PROGRAMS]
        .into_iter()
        .flatten()
        .map(|program| Check::new(program.name, move |room| compare(program, room)))
        .chain(languages::SUITES.iter().map(|program| {
            Check::new(program.name, move |room| compare(program, room))
                .only_full("runs many modules of it twice")
        }))
        .chain(suites::all())
        .collect()
}

fn compare(program: &Program, room: &Room) -> Result<Verdict, Error> {
    if let Err(why) = ensure(program.wants, &room.log) {
        return Ok(Verdict::Skipped(why));
    }
    if let Err(why) = build_library(room)? {
        return Ok(Verdict::Failed(why));
    }
    let plain = Stage::new(room, "plain", None)?;
    let expected = match (program.play)(&plain) {
        Ok(transcript) => transcript,
        Err(why) => {
            return Ok(Verdict::Skipped(format!("it does not work on this machine without Terrane: {why}")));
        }
    };
    plain.clear()?;
    let stage = Stage::new(room, "terrane", Some(library()))?;
    let got = match (program.play)(&stage) {
        Ok(transcript) => transcript,
        Err(why) => return Ok(Verdict::Failed(why.to_string())),
    };
    if expected != got {
        let files = [("transcript-plain", &expected), ("transcript-terrane", &got)];
        for (name, bytes) in files {
            let path = room.scratch.join(name);
            fs::write(&path, bytes)
                .map_err(|cause| Error::io(format_args!("cannot write {}", path.display()), cause))?;
        }
        room.note(&first_difference(&expected, &got));
        return Ok(Verdict::Failed(format!("output differs, see {}/transcript-*", room.scratch.display())));
    }
    if !stage.has_report() {
        return Ok(Verdict::Failed(
            "the program left no heap report: Terrane was not loaded, or died silently".into(),
        ));
    }
    Ok(Verdict::Passed(format!("{} bytes of transcript equal", expected.len())))
}

/// The first line that differs, cut around the first byte that does.
fn first_difference(expected: &[u8], got: &[u8]) -> String {
    let at = expected
        .iter()
        .zip(got)
        .position(|(left, right)| left != right)
        .unwrap_or(expected.len().min(got.len()));
    let before = &expected[..at];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let from = line_start.max(at.saturating_sub(80));
    let show = |bytes: &[u8]| {
        let rest = &bytes[from.min(bytes.len())..];
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()).min(160);
        String::from_utf8_lossy(&rest[..end]).into_owned()
    };
    format!("line {line}: without {:?}, on Terrane {:?}", show(expected), show(got))
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn the_first_differing_line_is_named() {
        assert_eq!(first_difference(b"a\nb\n", b"a\nc\n"), "line 2: without \"b\", on Terrane \"c\"");
        assert_eq!(first_difference(b"a\n", b"a\nb\n"), "line 2: without \"\", on Terrane \"b\"");
    }
}
