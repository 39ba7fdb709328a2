//! The book holds together: every chapter that `SUMMARY.md` names exists, every page is named there, and no link from
//! one page to another leads nowhere.

use super::{Room, Verdict};
use crate::workspace::{Error, root};
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
    for page in &pages {
        let text = fs::read_to_string(page)
            .map_err(|cause| Error::io(format_args!("cannot read {}", page.display()), cause))?;
        for link in links(&text) {
            let to = page.parent().unwrap_or(&source).join(&link);
            match to.canonicalize() {
                Ok(to) if *page == summary => drop(named.insert(to)),
                Ok(_) => {}
                Err(_) => problems.push(format!("{}: link to {link} leads nowhere", short(page))),
            }
        }
    }
    for page in &pages {
        if !page.canonicalize().is_ok_and(|page| named.contains(&page)) && *page != summary {
            problems.push(format!("{}: not in SUMMARY.md", short(page)));
        }
    }
    problems.iter().for_each(|problem| room.note(problem));
    Ok(match problems.first() {
        None => Verdict::Passed(format!("{} pages", pages.len())),
        Some(first) => Verdict::Failed(format!("{} problems, the first: {first}", problems.len())),
    })
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

/// The targets of links to other files, without their anchors; code blocks and spans hold no links.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if in_code {
            continue;
        }
        for part in line.split('`').step_by(2) {
            for rest in part.split("](").skip(1) {
                let Some(end) = rest.find(')') else { continue };
                let target = rest[..end].split('#').next().unwrap_or_default();
                if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                    found.push(target.to_owned());
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::links;

    #[test]
    fn links_to_files_are_found_and_code_and_web_addresses_are_not() {
        let text = "[a](a.md) and [b](dir/b.md#part) [c](https://x.org/) [d](#here)\n`[e](e.md)`\n```\n[f](f.md)\n```\n";
        assert_eq!(links(text), ["a.md", "dir/b.md"]);
    }
}
