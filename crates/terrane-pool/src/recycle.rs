//! How objects are made and made as new: [`Recycle`].

/// What becomes of an object after its reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It goes back into the pool.
    Keep,
    /// It is dropped: it grew too large, or cannot be used again.
    Discard,
}

/// How a pool makes its objects, and makes returned ones as good as new.
///
/// There is no default for [`reset`](Self::reset): an object that keeps the last user's data is a mistake that each user of a
/// pool must decide about.
///
/// # What these functions, and the drop of an object, may do
///
/// They are called with no lock held and outside of all caches, so they may use the pool that calls them: take, return, trim, tick,
/// warm, ask for statistics, even end it. An object that is being made, or reset, counts as out. Each return is a reset, so
/// a reset that takes an object and returns it needs an end to that of its own.
pub trait Recycle<T>: Send + Sync + 'static {
    /// A new object. If it panics, the panic reaches whoever asked for the object, and the pool is as before.
    fn create(&self) -> T;

    /// Called with every object that comes back, on the thread that returns it, also after the end of the pool. If it panics the
    /// object is dropped, and the panic reaches whoever dropped the lease.
    fn reset(&self, object: &mut T) -> Verdict;
}

/// A [`Recycle`] of two functions; made by [`by`].
#[derive(Clone, Copy, Debug)]
pub struct By<C, F> {
    create: C,
    reset: F,
}

/// Objects that `create` makes and `reset` makes as new.
pub const fn by<C, F>(create: C, reset: F) -> By<C, F> {
    By { create, reset }
}

impl<T, C, F> Recycle<T> for By<C, F>
where
    C: Fn() -> T + Send + Sync + 'static,
    F: Fn(&mut T) -> Verdict + Send + Sync + 'static,
{
    fn create(&self) -> T {
        (self.create)()
    }

    #[inline]
    fn reset(&self, object: &mut T) -> Verdict {
        (self.reset)(object)
    }
}

/// Makes objects by [`Default`] and assigns a new default to each that comes back: right for every type, and wasteful for
/// those that own memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Renew;

impl<T: Default> Recycle<T> for Renew {
    fn create(&self) -> T {
        T::default()
    }

    #[inline]
    fn reset(&self, object: &mut T) -> Verdict {
        *object = T::default();
        Verdict::Keep
    }
}
