// Terrane's heaps and pools from Java, through java.lang.foreign: no JNI, no native code of one's own.
//
//   java --enable-native-access=ALL-UNNAMED Pools.java path/to/libterrane.so [rounds]
//
// Prints nanoseconds per object for a pool, a heap and an arena of the JDK, after it has checked what they promise.

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemoryLayout.PathElement;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.nio.file.Path;
import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

public final class Pools {
    private static final Linker LINKER = Linker.nativeLinker();
    private static SymbolLookup library;

    static final MemoryLayout STATS = MemoryLayout.structLayout(
            JAVA_LONG.withName("hits"), JAVA_LONG.withName("misses"), JAVA_LONG.withName("created"),
            JAVA_LONG.withName("idle"), JAVA_LONG.withName("out"), JAVA_LONG.withName("bytes"));

    private static MethodHandle function(String name, MemoryLayout result, MemoryLayout... arguments) {
        MemorySegment address = library.find(name).orElseThrow(() -> new IllegalStateException("no " + name));
        FunctionDescriptor shape =
                result == null ? FunctionDescriptor.ofVoid(arguments) : FunctionDescriptor.of(result, arguments);
        // Short calls that never call back: no change of the thread's state.
        return LINKER.downcallHandle(address, shape, Linker.Option.critical(false));
    }

    private static long field(MemorySegment stats, String name) {
        return (long) STATS.varHandle(PathElement.groupElement(name)).get(stats, 0L);
    }

    private static void check(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    static final int HELD = 32;
    static final long BYTES = 1024;

    private interface Round {
        void run() throws Throwable;
    }

    /** Nanoseconds per object; HELD objects a round, the best of five runs after one to warm up. */
    private static double time(int rounds, Round round) throws Throwable {
        double best = Double.MAX_VALUE;
        for (int run = 0; run < 6; run++) {
            long start = System.nanoTime();
            for (int i = 0; i < rounds; i++) round.run();
            double each = (double) (System.nanoTime() - start) / rounds / HELD;
            if (run > 0) best = Math.min(best, each);
        }
        return best;
    }

    public static void main(String[] arguments) throws Throwable {
        library = SymbolLookup.libraryLookup(Path.of(arguments[0]).toAbsolutePath(), Arena.global());
        int rounds = arguments.length > 1 ? Integer.parseInt(arguments[1]) : 20_000;
        MethodHandle newPool = function("terrane_pool_new", ADDRESS, JAVA_LONG, JAVA_LONG, ADDRESS);
        MethodHandle destroyPool = function("terrane_pool_destroy", JAVA_LONG, ADDRESS);
        MethodHandle acquire = function("terrane_pool_acquire", ADDRESS, ADDRESS);
        MethodHandle release = function("terrane_pool_release", null, ADDRESS);
        MethodHandle readStats = function("terrane_pool_stats", null, ADDRESS, ADDRESS);
        MethodHandle newHeap = function("terrane_heap_new", ADDRESS);
        MethodHandle destroyHeap = function("terrane_heap_destroy", null, ADDRESS);
        MethodHandle malloc = function("terrane_heap_malloc", ADDRESS, ADDRESS, JAVA_LONG);
        MethodHandle free = function("terrane_heap_free", null, ADDRESS, ADDRESS);

        MemorySegment pool = (MemorySegment) newPool.invokeExact(BYTES, 2L * HELD, MemorySegment.NULL);
        check(pool.address() != 0, "a pool");
        MemorySegment[] held = new MemorySegment[HELD];

        // What was written is gone when the object is had again, on whatever thread it was returned.
        MemorySegment object = ((MemorySegment) acquire.invokeExact(pool)).reinterpret(BYTES);
        check(object.get(JAVA_INT, 0) == 0, "a new object is zero");
        object.fill((byte) 7);
        MemorySegment returned = object;
        Thread other = new Thread(() -> {
            try {
                release.invokeExact(returned);
            } catch (Throwable cause) {
                throw new AssertionError(cause);
            }
        });
        other.start();
        other.join();
        MemorySegment again = ((MemorySegment) acquire.invokeExact(pool)).reinterpret(BYTES);
        check(again.get(JAVA_INT, 512) == 0, "an object that comes back is zero");
        release.invokeExact(again);

        double pooled = time(rounds, () -> {
            for (int i = 0; i < HELD; i++) {
                held[i] = (MemorySegment) acquire.invokeExact(pool);
                held[i].reinterpret(BYTES).set(JAVA_INT, 0, i);
            }
            for (int i = 0; i < HELD; i++) release.invokeExact(held[i]);
        });
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment stats = arena.allocate(STATS);
            readStats.invokeExact(pool, stats);
            check(field(stats, "out") == 0, "nothing is out");
            check(field(stats, "created") <= 2 * HELD, "no more objects than the bound");
            System.out.printf("pool: %d objects made, %d acquires from the thread's own cache, %d not%n",
                    field(stats, "created"), field(stats, "hits"), field(stats, "misses"));
        }
        check((long) destroyPool.invokeExact(pool) == 0, "nothing leaked");

        MemorySegment heap = (MemorySegment) newHeap.invokeExact();
        double heaped = time(rounds, () -> {
            for (int i = 0; i < HELD; i++) {
                held[i] = (MemorySegment) malloc.invokeExact(heap, BYTES);
                held[i].reinterpret(BYTES).set(JAVA_INT, 0, i);
            }
            for (int i = 0; i < HELD; i++) free.invokeExact(heap, held[i]);
        });
        destroyHeap.invokeExact(heap);

        double arenas = time(rounds / 10, () -> {
            try (Arena arena = Arena.ofConfined()) {
                for (int i = 0; i < HELD; i++) arena.allocate(BYTES).set(JAVA_INT, 0, i);
            }
        });
        System.out.printf("objects of %d bytes, %d held at a time, ns each:%n", BYTES, HELD);
        System.out.printf("  terrane_pool (zeroed at return)  %8.1f%n", pooled);
        System.out.printf("  terrane_heap                     %8.1f%n", heaped);
        System.out.printf("  Arena.ofConfined (zeroed)        %8.1f%n", arenas);
        System.out.println("ok");
    }
}
