//! sort, perl, git, sqlite3.

use super::stage::{Numbers, Stage};
use super::{Error, Program};
use crate::test::Wanted;
use crate::workspace::root;
use std::fmt::Write;

pub const PROGRAMS: &[Program] = &[
    Program { name: "program-sort", wants: &[Wanted::Program("sort", "coreutils")], play: sort },
    Program { name: "program-perl", wants: &[Wanted::Program("perl", "perl-base")], play: perl },
    Program { name: "program-git", wants: &[Wanted::Program("git", "git")], play: git },
    Program { name: "program-sqlite3", wants: &[Wanted::Program("sqlite3", "sqlite3")], play: sqlite },
];

/// A large file, sorted by two threads in memory and once more with spills to disk.
fn sort(stage: &Stage) -> Result<Vec<u8>, Error> {
    let mut numbers = Numbers(7);
    let mut text = String::new();
    for line in 0..600_000 {
        let number = numbers.next();
        let _ = writeln!(text, "{:x} {} {line}", number, "x".repeat((number % 60) as usize));
    }
    stage.write("input", text)?;
    let mut transcript =
        stage.say(stage.command("sort").args(["--parallel=2", "-o", "sorted", "input"]), 120)?;
    transcript.extend(stage.read("sorted")?);
    let mut spilling = stage.command("sort");
    spilling.args(["--parallel=2", "-S", "4M", "-T", ".", "-k2,2", "-k1,1r", "-o", "sorted", "input"]);
    transcript.extend(stage.say(&mut spilling, 120)?);
    transcript.extend(stage.read("sorted")?);
    Ok(transcript)
}

/// Hashes, sorted lists, regular expressions and growing strings.
fn perl(stage: &Stage) -> Result<Vec<u8>, Error> {
    let script = r#"
use strict; use warnings;
my (%count, @words, $text);
my $x = 12345;
for my $i (1 .. 300_000) {
    $x = ($x * 1103515245 + 12345) & 0x7fffffff;
    my $word = join '', map { chr(97 + ($x >> $_) % 26) } 3, 7, 11, 15 .. 15 + $x % 9;
    $count{$word}++; push @words, $word if $i % 3 == 0;
    $text .= "$word " if $i % 5 == 0;
}
my @top = (sort { $count{$b} <=> $count{$a} || $a cmp $b } keys %count)[0 .. 50];
print "$_ $count{$_}\n" for @top;
my $hits = () = $text =~ /\b(\w)(\w)\w*\2\1\b/g;
print "hits $hits, words ", scalar(@words), ", text ", length($text), "\n";
my @parts = split / /, $text; my %seen; $seen{length $_}{$_} = [1 .. length $_] for @parts;
print join(' ', map { "$_:" . scalar(keys %{$seen{$_}}) } sort { $a <=> $b } keys %seen), "\n";
delete $seen{$_} for keys %seen;
$text =~ s/([aeiou])/uc($1) x 3/ge; print length($text), "\n";
"#;
    stage.write("script.pl", script)?;
    stage.say(stage.command("perl").arg("script.pl"), 120)
}

/// This repository's history read, cloned, repacked by several threads, checked and searched.
fn git(stage: &Stage) -> Result<Vec<u8>, Error> {
    let root = root().to_string_lossy().into_owned();
    let mut transcript = Vec::new();
    let mut git = |args: &[&str]| -> Result<(), Error> {
        let mut command = stage.command("git");
        command
            .args(["-c", "safe.directory=*", "-c", "gc.auto=0"])
            .args(args)
            .env("GIT_TERMINAL_PROMPT", "0");
        transcript.extend(stage.say(&mut command, 180)?);
        Ok(())
    };
    git(&["-C", &root, "log", "--stat", "-p", "-M", "-C", "--format=%H %an %s", "HEAD"])?;
    git(&["-C", &root, "blame", "HEAD", "--", "Cargo.toml"])?;
    git(&["clone", "--quiet", "--no-hardlinks", "--no-local", &root, "clone"])?;
    git(&[
        "-C",
        "clone",
        "-c",
        "pack.threads=4",
        "repack",
        "-a",
        "-d",
        "-f",
        "-q",
        "--depth=20",
        "--window=20",
    ])?;
    git(&["-C", "clone", "fsck", "--full", "--no-progress"])?;
    git(&["-C", "clone", "grep", "-n", "-E", "fn [a-z_]+\\(", "HEAD"])?;
    git(&["-C", "clone", "ls-tree", "-r", "HEAD"])?;
    Ok(transcript)
}

/// A generated database: inserts, indexes, joins, window functions, a vacuum and an integrity check.
fn sqlite(stage: &Stage) -> Result<Vec<u8>, Error> {
    let script = "
PRAGMA journal_mode=WAL; PRAGMA cache_size=-20000;
CREATE TABLE item(id INTEGER PRIMARY KEY, kind INTEGER, name TEXT, body BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)
INSERT INTO item SELECT i, (i * 7919) % 997, printf('name-%08x', (i * 2654435761) & 4294967295),
  zeroblob((i * 31) % 400) FROM n;
CREATE INDEX by_kind ON item(kind, name);
CREATE TABLE part AS SELECT id, (id * 13) % 200000 + 1 AS other, upper(name) AS tag FROM item WHERE id % 3 = 0;
SELECT kind, count(*), sum(length(body)), min(name), max(name) FROM item GROUP BY kind ORDER BY 2 DESC, 1 LIMIT 40;
SELECT count(*), sum(a.id), sum(b.kind) FROM part a JOIN item b ON a.other = b.id WHERE b.kind < 500;
SELECT sum(r) FROM (SELECT rank() OVER (PARTITION BY kind % 10 ORDER BY name) AS r FROM item WHERE id < 50000);
SELECT group_concat(tag, '') FROM (SELECT tag FROM part ORDER BY tag LIMIT 2000);
UPDATE item SET body = CAST(name || '-' || kind AS BLOB) WHERE id % 5 = 0;
DELETE FROM item WHERE kind % 4 = 1;
SELECT json_group_array(json_object('id', id, 'name', name)) FROM (SELECT * FROM item ORDER BY id LIMIT 3000);
VACUUM;
PRAGMA integrity_check;
SELECT count(*), sum(length(body)) FROM item;
";
    let script = stage.write("script.sql", script)?;
    stage.say_with(stage.command("sqlite3").args(["-batch", "data.db"]), Some(&script), 180)
}
