//! Passing calls on, for the sources that stand on another source.

/// Methods of [`terrane_core::Source`] that only pass on to the named field.
macro_rules! source {
    ($field:ident: $($method:ident),+) => {
        $(crate::forward::source!(@$method $field);)+
    };
    (@geometry $field:ident) => {
        fn geometry(&self) -> Geometry {
            self.$field.geometry()
        }
    };
    (@release $field:ident) => {
        unsafe fn release(&self, extent: Extent) -> Result<(), ReleaseError> {
            // SAFETY: passed on by the caller.
            unsafe { self.$field.release(extent) }
        }
    };
    (@abilities $field:ident) => {
        fn host_mapped(&self) -> Option<&dyn HostMapped> {
            self.$field.host_mapped()
        }

        fn purge(&self) -> Option<&dyn Purge> {
            self.$field.purge()
        }

        fn split_merge(&self) -> Option<&dyn SplitMerge> {
            self.$field.split_merge()
        }

        fn share(&self) -> Option<&dyn Share> {
            self.$field.share()
        }
    };
}

/// Methods of [`terrane_core::PageSource`] that only pass on to the named field.
macro_rules! pages {
    ($field:ident: $($method:ident),+) => {
        $(crate::forward::pages!(@$method $field);)+
    };
    (@page_size $field:ident) => {
        fn page_size(&self) -> usize {
            self.$field.page_size()
        }
    };
    (@commit $field:ident) => {
        unsafe fn commit(&self, start: NonNull<u8>, len: usize) -> Result<Contents, SourceError> {
            // SAFETY: passed on by the caller.
            unsafe { self.$field.commit(start, len) }
        }
    };
    (@decommit $field:ident) => {
        unsafe fn decommit(
            &self,
            start: NonNull<u8>,
            len: usize,
            how: Decommit,
        ) -> Result<Contents, SourceError> {
            // SAFETY: passed on by the caller.
            unsafe { self.$field.decommit(start, len, how) }
        }
    };
    (@remap $field:ident) => {
        unsafe fn remap(
            &self,
            from: NonNull<u8>,
            old_len: usize,
            to: NonNull<u8>,
            new_len: usize,
        ) -> Result<(), SourceError> {
            // SAFETY: passed on by the caller.
            unsafe { self.$field.remap(from, old_len, to, new_len) }
        }
    };
    (@populate $field:ident) => {
        unsafe fn populate(&self, start: NonNull<u8>, len: usize) -> Result<(), SourceError> {
            // SAFETY: passed on by the caller.
            unsafe { self.$field.populate(start, len) }
        }
    };
    (@advise_huge $field:ident) => {
        unsafe fn advise_huge(&self, start: NonNull<u8>, len: usize, huge: bool) -> Result<(), SourceError> {
            // SAFETY: passed on by the caller.
            unsafe { self.$field.advise_huge(start, len, huge) }
        }
    };
    (@bind $field:ident) => {
        unsafe fn bind(&self, start: NonNull<u8>, len: usize, node: u32) -> Result<(), SourceError> {
            // SAFETY: passed on by the caller.
            unsafe { self.$field.bind(start, len, node) }
        }
    };
}

pub(crate) use {pages, source};
