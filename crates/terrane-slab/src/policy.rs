//! How a domain behaves: its policy, and the parts of it that may change while the domain is in use.

use crate::arena::Growth;
use crate::depths::ListSizing;
use crate::domain::Domain;
use crate::purge::PurgePolicy;
use crate::slab::Misuse;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed};
use terrane_core::Decommit;

/// How a domain behaves. Fixed when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Arena sizes.
    pub growth: Growth,
    /// Giving memory back.
    pub purge: PurgePolicy,
    /// How deep the lists of threads are.
    pub lists: ListSizing,
    /// Whether huge blocks that are expected to be filled (not asked to be zero, or grown) are backed by transparent huge pages.
    pub huge_pages: bool,
    /// NUMA nodes whose memory is kept apart; 0 and 1 both mean that all memory is alike.
    pub nodes: u32,
    /// The NUMA node that the calling thread runs on just now; asked only while nodes are kept apart. The default says 0.
    pub node: fn() -> u32,
    /// Milliseconds since some fixed moment. The default stands still, so that nothing is purged by age.
    pub clock: fn() -> u64,
    /// Called when freed memory begins to age that none did before, and when a pass leaves some that goes on to age, for whoever
    /// drives [`purge`](Domain::purge). It must be quick, and must not come back to the heap. The default does nothing.
    pub on_idle_memory: fn(),
    /// Called when the domain notices misuse, with the address at fault. The default panics.
    pub on_misuse: fn(Misuse, usize) -> !,
}

fn panic_on_misuse(misuse: Misuse, address: usize) -> ! {
    panic!("terrane: {} at {address:#x}", misuse.message())
}

fn no_clock() -> u64 {
    0
}

fn tell_nobody() {}

fn one_node() -> u32 {
    0
}

impl Policy {
    /// The defaults of each part.
    pub const DEFAULT: Self = Self {
        growth: Growth::DEFAULT,
        purge: PurgePolicy::DEFAULT,
        lists: ListSizing::LowWater,
        huge_pages: true,
        nodes: 1,
        node: one_node,
        clock: no_clock,
        on_idle_memory: tell_nobody,
        on_misuse: panic_on_misuse,
    };
}

impl Default for Policy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The parts of a policy that may change while the domain is in use.
#[derive(Debug)]
pub(crate) struct Settings {
    delay_ms: core::sync::atomic::AtomicU64,
    lazy: AtomicBool,
    huge_cache_bytes: AtomicUsize,
    large_cache_bytes: AtomicUsize,
    huge_pages: AtomicBool,
    lists: AtomicU8,
    nodes: AtomicU32,
}

impl Settings {
    pub(crate) const fn new(policy: &Policy) -> Self {
        Self {
            delay_ms: core::sync::atomic::AtomicU64::new(policy.purge.delay_ms),
            lazy: AtomicBool::new(matches!(policy.purge.how, Decommit::Lazy)),
            huge_cache_bytes: AtomicUsize::new(policy.purge.huge_cache_bytes),
            large_cache_bytes: AtomicUsize::new(policy.purge.large_cache_bytes),
            huge_pages: AtomicBool::new(policy.huge_pages),
            lists: AtomicU8::new(policy.lists.to_bits()),
            nodes: AtomicU32::new(policy.nodes),
        }
    }
}

impl<S, K, O> Domain<S, K, O> {
    /// The policy in force.
    pub fn policy(&self) -> Policy {
        Policy {
            purge: self.purge_policy(),
            lists: self.list_sizing(),
            huge_pages: self.huge_pages(),
            nodes: self.nodes(),
            ..self.policy
        }
    }

    /// Changes how memory is given back, from now on.
    pub fn set_purge(&self, purge: PurgePolicy) {
        self.settings.delay_ms.store(purge.delay_ms, Relaxed);
        self.settings.lazy.store(purge.how == Decommit::Lazy, Relaxed);
        self.settings.huge_cache_bytes.store(purge.huge_cache_bytes, Relaxed);
        self.settings.large_cache_bytes.store(purge.large_cache_bytes, Relaxed);
    }

    /// Chooses what sets the depth of threads' lists, from now on. Lists that a policy has made deeper or less deep stay so.
    pub fn set_list_sizing(&self, sizing: ListSizing) {
        self.settings.lists.store(sizing.to_bits(), Relaxed);
    }

    pub(crate) fn list_sizing(&self) -> ListSizing {
        ListSizing::from_bits(self.settings.lists.load(Relaxed))
    }

    /// Switches transparent huge pages behind huge blocks that are expected to be filled on or off, from now on.
    pub fn set_huge_pages(&self, on: bool) {
        self.settings.huge_pages.store(on, Relaxed);
    }

    pub(crate) fn purge_policy(&self) -> PurgePolicy {
        PurgePolicy {
            delay_ms: self.purge_delay(),
            how: if self.settings.lazy.load(Relaxed) { Decommit::Lazy } else { Decommit::Now },
            huge_cache_bytes: self.settings.huge_cache_bytes.load(Relaxed),
            large_cache_bytes: self.large_cache_bytes(),
        }
    }

    pub(crate) fn purge_delay(&self) -> u64 {
        self.settings.delay_ms.load(Relaxed)
    }

    pub(crate) fn large_cache_bytes(&self) -> usize {
        self.settings.large_cache_bytes.load(Relaxed)
    }

    pub(crate) fn huge_pages(&self) -> bool {
        self.settings.huge_pages.load(Relaxed)
    }

    pub(crate) fn nodes(&self) -> u32 {
        self.settings.nodes.load(Relaxed)
    }

    pub(crate) fn store_nodes(&self, nodes: u32) {
        self.settings.nodes.store(nodes, Relaxed);
    }
}
