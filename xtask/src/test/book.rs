//! The book holds together: every chapter that `SUMMARY.md` names exists, every page is named there, no link from one page to
//! another or to a heading leads nowhere, and models of protocols and pages name each other.

use super::{Room, Verdict};
use crate::workspace::{Error, crates, root};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Checks `docs/src`.
pub fn check(room: &Room) -> Result<Verdict, Error> {
    let source = root().join("docs/src");
    let summary = source.join("SUMMARY.md");
    if !summary.is_file() {
        return Ok(Verdict::Failed("docs/src/SUMMARY.md does not exist".into()));
    }
    let mut pages = BTreeSet::new();
    collect(&source, &mut pages).map_err(|cause| Error::io("cannot read docs/src", cause))?;
    let mut problems = Vec::new();
    let mut named = BTreeSet::from([summary.clone()]);
    let mut models_named = BTreeSet::new();
    for page in &pages {
        let text = read(page)?;
        for link in links(&text) {
            let to = if link.file.is_empty() {
                page.clone()
            } else {
                page.parent().unwrap_or(&source).join(&link.file)
            };
            let Ok(to) = to.canonicalize() else {
                problems.push(format!("{}: link to {} leads nowhere", short(page), link.file));
                continue;
            };
            if *page == summary {
                named.insert(to.clone());
            }
            if !link.heading.is_empty() && !headings(&read(&to)?).contains(&link.heading) {
                problems.push(format!("{}: {} has no heading #{}", short(page), short(&to), link.heading));
            }
        }
        models_named.extend(prose(&text).flat_map(models));
    }
    for page in &pages {
        if !page.canonicalize().is_ok_and(|page| named.contains(&page)) && *page != summary {
            problems.push(format!("{}: not in SUMMARY.md", short(page)));
        }
    }
    let models_there = models_of_the_workspace()?;
    for gone in models_named.difference(&models_there) {
        problems.push(format!("the book names {gone}, which no model file has"));
    }
    for silent in models_there.difference(&models_named).filter(|name| name.starts_with("model_")) {
        problems.push(format!("no page names {silent}"));
    }
    problems.iter().for_each(|problem| room.note(problem));
    Ok(match problems.first() {
        None => Verdict::Passed(format!("{} pages", pages.len())),
        Some(first) => Verdict::Failed(format!("{} problems, the first: {first}", problems.len())),
    })
}

fn read(page: &Path) -> Result<String, Error> {
    fs::read_to_string(page).map_err(|cause| Error::io(format_args!("cannot read {}", page.display()), cause))
}

/// The models and planted faults in `crates/*/tests/loom*.rs`.
fn models_of_the_workspace() -> Result<BTreeSet<String>, Error> {
    let mut found = BTreeSet::new();
    for name in crates() {
        let Ok(files) = fs::read_dir(root().join("crates").join(name).join("tests")) else { continue };
        for file in files.filter_map(Result::ok) {
            if file.file_name().to_string_lossy().starts_with("loom") {
                found.extend(read(&file.path())?.lines().flat_map(models));
            }
        }
    }
    Ok(found)
}

/// Names such as `model_push` and `fault_push_relaxed` in a line.
fn models(line: &str) -> impl Iterator<Item = String> {
    line.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .filter(|word| {
            let name = word.strip_prefix("model_").or_else(|| word.strip_prefix("fault_"));
            name.is_some_and(|name| !name.is_empty() && !name.contains(char::is_uppercase))
        })
        .map(str::to_owned)
}

fn short(page: &Path) -> String {
    page.strip_prefix(root()).unwrap_or(page).display().to_string()
}

fn collect(folder: &Path, pages: &mut BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.insert(path);
        }
    }
    Ok(())
}

/// The lines outside of code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

/// Where a link leads: a file, empty for the page itself, and a heading of it, empty for its beginning.
#[derive(PartialEq, Debug)]
struct Link {
    file: String,
    heading: String,
}

/// The links to other files and to headings; code blocks and spans hold no links.
fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    for line in prose(text) {
        for part in line.split('`').step_by(2) {
            for rest in part.split("](").skip(1) {
                let Some(end) = rest.find(')') else { continue };
                let target = &rest[..end];
                if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
                    found.push(Link { file: file.to_owned(), heading: heading.to_owned() });
                }
            }
        }
    }
    found
}

/// The names of a page's headings, as mdBook makes them.
fn headings(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            title
                .chars()
                .filter(|&letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
                .map(|letter| if letter == ' ' { '-' } else { letter })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Link, headings, links, models};

    #[test]
    fn links_to_files_and_headings_are_found_and_code_and_web_addresses_are_not() {
        let text = "[a](a.md) and [b](dir/b.md#part) [c](https://x.org/) [d](#here)\n`[e](e.md)`\n```\n[f](f.md)\n```\n";
        let link = |file: &str, heading: &str| Link { file: file.into(), heading: heading.into() };
        assert_eq!(links(text), [link("a.md", ""), link("dir/b.md", "part"), link("", "here")]);
    }

    #[test]
    fn a_heading_is_named_by_its_words() {
        let text = "# Protocol: the `word`\n\n```\n# no heading\n```\n## Large blocks\n";
        let found: Vec<_> = headings(text).into_iter().collect();
        assert_eq!(found, ["large-blocks", "protocol-the-word"]);
    }

    #[test]
    fn models_and_faults_are_found_by_their_names_and_patterns_of_names_are_not() {
        let found: Vec<_> = models("| `model_a`, `fault_a_relaxed` | `model_NAME`, a model_ |").collect();
        assert_eq!(found, ["model_a", "fault_a_relaxed"]);
    }
}
