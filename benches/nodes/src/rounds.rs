//! The rounds, their table, and the goals.

use crate::kernel::{self, MPOL_PREFERRED};
use crate::load::{self, Block, Worker, all, pages_of};
use std::collections::BTreeSet;
use std::io;
use terrane_pages::Node;

/// Share of pages in percent that have to be on the node of the thread that allocated them.
const LOCAL_GOAL: f64 = 99.0;
/// Share of a node's highest use in percent that may be left when everything is freed.
const LEFT_GOAL: f64 = 10.0;
/// Threads on each node.
const THREADS: usize = 2;

/// Pages that threads of one node allocated in a round.
#[derive(Default, Clone)]
struct Tally {
    pages: usize,
    local: usize,
    /// Of the pages, those that threads of the same node had before, and those that threads of others had.
    home: usize,
    strayed: usize,
}

/// The blocks of each worker.
type Sets = Vec<Vec<Block>>;

/// Plays all rounds; the goals that were not met.
pub fn play(nodes: &[&Node]) -> io::Result<Vec<String>> {
    let mut unmet = Vec::new();
    let workers: Vec<Worker> =
        nodes.iter().flat_map(|node| (0..THREADS).map(|_| Worker::new(node.id, node.cpus.clone()))).collect();
    println!(
        "{:<16} {:>4} {:>8} {:>9} {:>11} {:>11}",
        "round", "node", "pages", "local %", "used again", "of another"
    );
    let nothing: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); workers.len()];

    let first = all(&workers, |_| Box::new(load::set_of_all_lengths));
    judge("fresh", &workers, &first, &nothing, &mut unmet)?;
    ask_again(&workers, &first, &mut unmet)?;
    let peak = kernel::resident_by_node(highest(nodes))?;

    // Every set is freed by a thread of the next node, in one go with the others; then all allocate again.
    let before: Vec<BTreeSet<usize>> = first.iter().map(|set| pages_of(set)).collect();
    let remote_before = terrane::stats().remote_frees;
    free_on(&workers, first, THREADS);
    let remote = terrane::stats().remote_frees - remote_before;
    let second = all(&workers, |_| Box::new(load::set_of_all_lengths));
    let tallies = judge("freed elsewhere", &workers, &second, &before, &mut unmet)?;
    drop(before);
    let [pages, home, strayed] = sums(&tallies);
    println!(
        "  {remote} remote frees; {:.1} % of the pages were used again on their node, {strayed} on another",
        percent(home, pages)
    );
    goal(&mut unmet, remote > 0, "freed elsewhere: no free was remote");
    goal(&mut unmet, home * 2 > pages, "freed elsewhere: less than half of the pages came home");
    goal(&mut unmet, strayed * 100 <= pages, "freed elsewhere: pages went to threads of another node");

    let left_behind = leave_slabs_behind(nodes);
    let before: Vec<BTreeSet<usize>> = left_behind.iter().map(|set| pages_of(set)).collect();
    let steals_before = terrane::stats().steals;
    let third = all(&workers, |_| Box::new(load::set_of_small_blocks));
    let tallies = judge("stolen", &workers, &third, &before, &mut unmet)?;
    drop(before);
    let steals = terrane::stats().steals - steals_before;
    println!("  {steals} slabs of ended threads taken over");
    goal(&mut unmet, steals > 0, "stolen: no slab was stolen");
    let [pages, _, strayed] = sums(&tallies);
    goal(&mut unmet, strayed * 100 <= pages, "stolen: slabs went to threads of another node");

    let (movers, sets): (Vec<Worker>, Sets) = moved(nodes);
    judge("moved", &movers, &sets, &nothing, &mut unmet)?;

    drop(movers);
    for sets in [second, third, left_behind, sets] {
        free_on(&workers, sets, 0);
    }
    all(&workers, |_| {
        Box::new(|| {
            terrane::purge();
        })
    });
    terrane::purge();
    let left = kernel::resident_by_node(highest(nodes))?;
    for node in nodes {
        let (peak, left) = (peak[node.id as usize], left[node.id as usize]);
        println!(
            "{:<16} {:>4} {:>8.1} MiB at the end of the first round, {:.1} MiB when all is freed",
            "returned",
            node.id,
            mib(peak),
            mib(left)
        );
        let is_met = percent(left, peak) <= LEFT_GOAL;
        goal(&mut unmet, is_met, &format!("returned: node {} keeps too much", node.id));
    }
    Ok(unmet)
}

/// One more than the highest number of a node.
fn highest(nodes: &[&Node]) -> usize {
    nodes.iter().map(|node| node.id as usize + 1).max().unwrap_or(0)
}

/// Asks where the pages of each worker's set lie, prints a row for each node, and judges it.
fn judge(
    round: &str,
    workers: &[Worker],
    sets: &[Vec<Block>],
    before: &[BTreeSet<usize>],
    unmet: &mut Vec<String>,
) -> io::Result<Vec<Tally>> {
    let mut tallies = Vec::new();
    let mut ids: Vec<u32> = workers.iter().map(|worker| worker.node).collect();
    ids.dedup();
    for &id in &ids {
        let mut tally = Tally::default();
        for (worker, set) in workers.iter().zip(sets).filter(|(worker, _)| worker.node == id) {
            let pages: Vec<usize> = pages_of(set).into_iter().collect();
            tally.pages += pages.len();
            let there = kernel::nodes_of(&pages)?;
            tally.local += there.iter().filter(|&&node| node == worker.node as i32).count();
            for page in &pages {
                // The sets of before are in the order of the workers, two for each node.
                let had = before.iter().position(|pages| pages.contains(page));
                let had = had.map(|place| ids[place / THREADS % ids.len()]);
                tally.home += usize::from(had == Some(id));
                tally.strayed += usize::from(had.is_some_and(|had| had != id));
            }
        }
        let local = percent(tally.local, tally.pages);
        println!(
            "{round:<16} {id:>4} {:>8} {local:>9.2} {:>11} {:>11}",
            tally.pages, tally.home, tally.strayed
        );
        goal(unmet, local >= LOCAL_GOAL, &format!("{round}: {local:.2} % local on node {id}"));
        tallies.push(tally);
    }
    Ok(tallies)
}

/// Asks for a part of the pages in another way, and for the policy of their ranges.
fn ask_again(workers: &[Worker], sets: &[Vec<Block>], unmet: &mut Vec<String>) -> io::Result<()> {
    let (mut asked, mut agree, mut preferred) = (0, 0, 0);
    for (worker, set) in workers.iter().zip(sets) {
        let pages: Vec<usize> = pages_of(set).into_iter().step_by(16).collect();
        let nodes = kernel::nodes_of(&pages)?;
        for (page, node) in pages.iter().zip(nodes) {
            asked += 1;
            agree += usize::from(kernel::node_of(*page)? == node);
            let wanted = 1u64.checked_shl(worker.node).unwrap_or(0);
            preferred += usize::from(kernel::policy_of(*page)? == (MPOL_PREFERRED, wanted));
        }
    }
    println!(
        "  get_mempolicy agrees with move_pages on {agree} of {asked} pages; {preferred} prefer their thread's node"
    );
    goal(unmet, agree == asked, "fresh: get_mempolicy and move_pages differ");
    goal(unmet, percent(preferred, asked) >= LOCAL_GOAL, "fresh: ranges do not prefer their thread's node");
    Ok(())
}

/// Frees each worker's set on the worker `distance` places further.
fn free_on(workers: &[Worker], sets: Sets, distance: usize) {
    let answers: Vec<_> = sets
        .into_iter()
        .enumerate()
        .map(|(place, set)| {
            workers[(place + distance) % workers.len()].start(move || {
                set.into_iter().for_each(Block::free);
                // What waits in batches goes too.
                terrane::collect();
            })
        })
        .collect();
    answers.into_iter().for_each(load::Answer::get);
}

/// Threads on every node that allocate small blocks, free every other and end.
fn leave_slabs_behind(nodes: &[&Node]) -> Sets {
    let workers: Vec<Worker> =
        nodes.iter().flat_map(|node| (0..THREADS).map(|_| Worker::new(node.id, node.cpus.clone()))).collect();
    all(&workers, |_| {
        Box::new(|| {
            let (kept, freed): (Vec<_>, Vec<_>) =
                load::set_of_small_blocks().into_iter().enumerate().partition(|(place, _)| place % 2 == 0);
            freed.into_iter().for_each(|(_, block)| block.free());
            kept.into_iter().map(|(_, block)| block).collect()
        })
    })
}

/// Threads that allocate on one node, are moved to the next, and allocate there; the threads under their new node, and what
/// they allocated there.
fn moved(nodes: &[&Node]) -> (Vec<Worker>, Sets) {
    let mut sets = Vec::new();
    let mut movers = Vec::new();
    for (place, node) in nodes.iter().enumerate() {
        let next = nodes[(place + 1) % nodes.len()];
        for _ in 0..THREADS {
            let mut worker = Worker::new(node.id, node.cpus.clone());
            let cpus = next.cpus.clone();
            let set = worker.start(move || {
                let here = load::set_of_small_blocks();
                kernel::bind_thread(&cpus).expect("the processors are online");
                let there = load::set_of_all_lengths();
                here.into_iter().for_each(Block::free);
                there
            });
            worker.node = next.id;
            sets.push(set.get());
            movers.push(worker);
        }
    }
    (movers, sets)
}

fn goal(unmet: &mut Vec<String>, is_met: bool, what: &str) {
    if !is_met {
        unmet.push(what.to_owned());
    }
}

fn sums(tallies: &[Tally]) -> [usize; 3] {
    let sum = |part: fn(&Tally) -> usize| tallies.iter().map(part).sum();
    [sum(|tally| tally.pages), sum(|tally| tally.home), sum(|tally| tally.strayed)]
}

fn percent(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
