//! The pools that are compared, behind one trait.

use crossbeam::queue::{ArrayQueue, SegQueue};
use lockfree_object_pool::{LinearObjectPool, LinearReusable, MutexObjectPool, MutexReusable};
use std::hint::black_box;
use terrane_pool::{Builder, Lease, LockFree, Mutexed, Pool, Recycle, Store, Verdict};

/// What is pooled: one pointer to a block of 1 KiB, so that pools that move their objects are not punished.
pub struct Item(pub Box<[u64; 128]>);

impl Default for Item {
    fn default() -> Self {
        Self(Box::new([0; 128]))
    }
}

impl Item {
    /// What every pool does with an object that comes back.
    fn reset(&mut self) {
        self.0[0] = 0;
    }
}

/// A pool under test.
pub trait Subject: Sync {
    /// An object until it is dropped, on any thread.
    type Handle<'s>: Send
    where
        Self: 's;

    /// A pool for up to `objects` objects.
    fn new(objects: usize) -> Self;

    /// Takes an object and writes a word of it.
    fn take(&self) -> Self::Handle<'_>;
}

/// No pool: an allocation and a free each time.
pub struct Plain;

impl Subject for Plain {
    type Handle<'s> = Item;

    fn new(_: usize) -> Self {
        Self
    }

    #[inline]
    fn take(&self) -> Item {
        // Not zeroed: a pool's object is not either.
        let mut block = Box::<[u64; 128]>::new_uninit();
        // SAFETY: integers that were not written are not read: only the first word is, and it is written here.
        let mut item = unsafe {
            block.as_mut_ptr().cast::<u64>().write(1);
            Item(black_box(block).assume_init())
        };
        item.0[0] = 1;
        item
    }
}

/// How Terrane's pools make and reset an item.
pub struct Items;

impl Recycle<Item> for Items {
    fn create(&self) -> Item {
        Item::default()
    }

    #[inline]
    fn reset(&self, item: &mut Item) -> Verdict {
        item.reset();
        Verdict::Keep
    }
}

/// Terrane's pool over the store `M`.
pub struct Ours<M: Store>(Pool<Item, Items, M>);

impl<M: Store> Subject for Ours<M> {
    type Handle<'s> = Lease<'s, Item, Items, M>;

    fn new(objects: usize) -> Self {
        Self(Builder::new(Items).max(objects).build_in())
    }

    #[inline]
    fn take(&self) -> Self::Handle<'_> {
        let mut lease = self.0.acquire().expect("the bound is above what a row needs");
        lease.0[0] = 1;
        lease
    }
}

/// Terrane's pool.
pub type Terrane = Ours<LockFree>;
/// Terrane's pool over a mutex.
pub type TerraneMutex = Ours<Mutexed>;

/// `object-pool`.
pub struct ObjectPool(object_pool::Pool<Item>);

/// Resets before it is returned, which that crate leaves to its users.
pub struct ResetFirst<H: std::ops::DerefMut<Target = Item>>(H);

impl<H: std::ops::DerefMut<Target = Item>> Drop for ResetFirst<H> {
    #[inline]
    fn drop(&mut self) {
        self.0.reset();
    }
}

impl Subject for ObjectPool {
    type Handle<'s> = ResetFirst<object_pool::Reusable<'s, Item>>;

    fn new(_: usize) -> Self {
        Self(object_pool::Pool::new(0, Item::default))
    }

    #[inline]
    fn take(&self) -> Self::Handle<'_> {
        let mut item = self.0.pull(Item::default);
        item.0[0] = 1;
        ResetFirst(item)
    }
}

impl opool::PoolAllocator<Item> for Items {
    fn allocate(&self) -> Item {
        Item::default()
    }

    #[inline]
    fn reset(&self, item: &mut Item) {
        item.reset();
    }
}

/// `opool`.
pub struct Opool(opool::Pool<Items, Item>);

impl Subject for Opool {
    type Handle<'s> = opool::RefGuard<'s, Items, Item>;

    fn new(objects: usize) -> Self {
        Self(opool::Pool::new(objects, Items))
    }

    #[inline]
    fn take(&self) -> Self::Handle<'_> {
        let mut item = self.0.get();
        item.0[0] = 1;
        item
    }
}

/// `lockfree-object-pool`, linear.
pub struct Linear(LinearObjectPool<Item>);

impl Subject for Linear {
    type Handle<'s> = LinearReusable<'s, Item>;

    fn new(_: usize) -> Self {
        Self(LinearObjectPool::new(Item::default, Item::reset))
    }

    #[inline]
    fn take(&self) -> Self::Handle<'_> {
        let mut item = self.0.pull();
        item.0[0] = 1;
        item
    }
}

/// `lockfree-object-pool`, over a mutex.
pub struct LinearMutex(MutexObjectPool<Item>);

impl Subject for LinearMutex {
    type Handle<'s> = MutexReusable<'s, Item>;

    fn new(_: usize) -> Self {
        Self(MutexObjectPool::new(Item::default, Item::reset))
    }

    #[inline]
    fn take(&self) -> Self::Handle<'_> {
        let mut item = self.0.pull();
        item.0[0] = 1;
        item
    }
}

impl sharded_slab::Clear for Item {
    #[inline]
    fn clear(&mut self) {
        self.reset();
    }
}

/// `sharded-slab`'s pool.
pub struct Sharded(sharded_slab::Pool<Item>);

/// An object of that pool, cleared when this is dropped.
pub struct Sharp<'s> {
    pool: &'s sharded_slab::Pool<Item>,
    key: usize,
}

impl Drop for Sharp<'_> {
    #[inline]
    fn drop(&mut self) {
        self.pool.clear(self.key);
    }
}

impl Subject for Sharded {
    type Handle<'s> = Sharp<'s>;

    fn new(_: usize) -> Self {
        Self(sharded_slab::Pool::new())
    }

    #[inline]
    fn take(&self) -> Sharp<'_> {
        let mut item = self.0.create().expect("that pool has room for billions");
        item.0[0] = 1;
        Sharp { pool: &self.0, key: item.key() }
    }
}

/// A queue of idle items, from `crossbeam`.
pub trait Queue: Sync + Sized {
    /// A queue of up to `objects`.
    fn new(objects: usize) -> Self;
    /// Takes one.
    fn pop(&self) -> Option<Item>;
    /// Gives one back.
    fn push(&self, item: Item);
}

impl Queue for ArrayQueue<Item> {
    fn new(objects: usize) -> Self {
        Self::new(objects)
    }
    fn pop(&self) -> Option<Item> {
        self.pop()
    }
    fn push(&self, item: Item) {
        drop(self.push(item));
    }
}

impl Queue for SegQueue<Item> {
    fn new(_: usize) -> Self {
        Self::new()
    }
    fn pop(&self) -> Option<Item> {
        self.pop()
    }
    fn push(&self, item: Item) {
        self.push(item);
    }
}

/// A pool as people write it: a queue, and a guard.
pub struct Queued<Q>(Q);

/// The guard.
pub struct Returning<'s, Q: Queue> {
    queue: &'s Q,
    item: Option<Item>,
}

impl<Q: Queue> Drop for Returning<'_, Q> {
    #[inline]
    fn drop(&mut self) {
        if let Some(mut item) = self.item.take() {
            item.reset();
            self.queue.push(item);
        }
    }
}

impl<Q: Queue> Subject for Queued<Q> {
    type Handle<'s>
        = Returning<'s, Q>
    where
        Q: 's;

    fn new(objects: usize) -> Self {
        Self(Q::new(objects))
    }

    #[inline]
    fn take(&self) -> Self::Handle<'_> {
        let mut item = self.0.pop().unwrap_or_default();
        item.0[0] = 1;
        Returning { queue: &self.0, item: Some(item) }
    }
}
